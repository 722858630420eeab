"""Smoothing: keys divided, and queries multiplied, by a power of two a channel, so that few bits hold keys.

Some models' keys have channels that are far larger than others, for instance by biases of the projection. A
key has one scale, so such a channel costs all others their bits. Query times key stays what it was, bit for
bit, since powers of two change exponents alone. The idea is SmoothQuant's (Xiao et al. 2022, arXiv
2211.10438).
"""

import hashlib

import torch

FARTHEST = 8  # powers of two between a channel's factor and 1: within float16's range
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of smoothing: from none to channels of equal size


def smoothing_factors(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The factors [Hkv, D] float32, powers of two, with which rounded keys err least in their logits.

    A factor is the size of its channel to some power, of `STRENGTHS`, whichever is best for the head. It is
    measured on queries [B, Hq, S, D] and keys [B, Hkv, S, D] of a text.
    """
    key, query = key.float(), query.float().unflatten(1, (key.shape[1], -1))
    asked = query.square().mean((0, 2, 3))  # [Hkv, D], over all queries of a kv head
    size = key.square().mean((0, 2)).sqrt().clamp_min(torch.finfo(torch.float32).tiny).log2()
    size = size - size.mean(-1, keepdim=True)
    factors = [torch.exp2((size * strength).round().clamp(-FARTHEST, FARTHEST)) for strength in STRENGTHS]
    # A key is rounded by up to its largest number over 254, and a query's channel multiplies that.
    errors = [
        (asked * each.square()).sum(-1) * (key / each[:, None]).abs().amax(-1).square().mean((0, 2))
        for each in factors
    ]
    best = torch.stack(errors).argmin(0)  # [Hkv]
    return torch.stack(factors)[best, torch.arange(len(best), device=best.device)]


def smooth(
    query: torch.Tensor, key: torch.Tensor, factors: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query [B, Hq, S, D] times factors [Hkv, D] of its kv head, and key [B, Hkv, S, D] divided by them."""
    if factors is None:
        return query, key
    grouped = query.unflatten(1, (key.shape[1], -1)) * factors[:, None, None]
    return grouped.flatten(1, 2), key / factors[:, None]


def digest_of(factors: torch.Tensor | None) -> str:
    """Hexadecimal digits that tell factors apart, whatever their dtype and device; empty for None."""
    if factors is None:
        return ""
    return hashlib.sha256(factors.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]
