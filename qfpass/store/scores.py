"""Which key goes first: one function a score, the lowest score is evicted.

Every score has the same form: keys [B, Hkv, S, D] and values [B, Hkv, S, Dv] as they stand in the
store (positions applied), positions [B, S] int64, filters [Hkv, P] float32 or None, and returns
[B, Hkv, S] float32. A key's score never changes, so keeping the best is exact however a text is cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ScoreFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def a_quarter(slots: int) -> int:
    """A quarter of the slots, at least one."""
    return max(1, slots // 4)


def a_half(slots: int) -> int:
    """Half of the slots, at least one: the best part for the published score, measured in docs/quality.md."""
    return max(1, slots // 2)


def an_eighth_to_half(slots: int) -> int:
    """An eighth of up to 256 slots, half of 1,024 and more, in between a share that grows with the slots.

    A few hundred of the newest tokens carry most of perplexity, whatever the score; a store that has no room
    for them is better filled with what the score ranks highest. Measured in docs/quality.md.
    """
    return max(1, slots // 8, min(slots // 2, slots**2 // 2048))


@dataclass(frozen=True)
class Score:
    """A named score.

    Attributes:
        needs_filters: it reads filters.
        recent: by default, how many of so many slots protect the newest tokens.
        reads_all_heads: a head's score depends on the other heads' keys and values at its token.
    """

    function: ScoreFunction
    needs_filters: bool
    recent: Callable[[int], int] = a_quarter
    reads_all_heads: bool = False


def published(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """The projection of the key on its head's Q-Filter (Godey et al. 2025, arXiv 2503.02812).

    E_Q<Q, k> is close to kappa <k, v1>, with v1 the main direction of the queries, so <k, v1> ranks
    keys by the attention that they can expect.
    """
    assert filters is not None, "the published score reads filters"
    return (keys.float() * filters[:, None, :]).sum(-1)


def trained(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """What `qfpass.train` learned: a projection of the token's keys and values, the log of the norm of the
    head's own value, and how fast the head forgets.

    A head keeps key i at time t if <w, [k_i; v_i]> + a log|v_i| - c (t - i) is among its best; c t is the
    same for all of them, so the score needs the position i alone and never changes.
    """
    assert filters is not None, "the trained score reads filters"
    heads, width = keys.shape[1], keys.shape[-1] + values.shape[-1]
    weights, norm_weight, position_weight = filters.split([heads * width, 1, 1], dim=1)
    norm = torch.linalg.vector_norm(values.float(), dim=-1).clamp_min(1e-12)
    if keys.shape[2] == 1:
        projection = _of_one_token(keys, values, weights.unflatten(1, (heads, width)))
    else:
        pairs = torch.cat([keys, values], dim=-1).float().transpose(1, 2).flatten(2)
        projection = (pairs @ weights.T).transpose(1, 2)
    return projection + norm_weight * norm.log() + position_weight * positions[:, None, :].float()


def _of_one_token(keys: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The projections [B, Hkv, 1] on weights [Hkv, Hkv, D + Dv], fused with their inputs."""
    for_keys, for_values = weights.split([keys.shape[-1], values.shape[-1]], dim=-1)
    of_keys = (keys.float().squeeze(2)[:, None] * for_keys).sum((-1, -2))
    of_values = (values.float().squeeze(2)[:, None] * for_values).sum((-1, -2))
    return (of_keys + of_values)[..., None]


def recency(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """The position itself: with sinks this is StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).

    float32 counts tokens exactly up to 2^24.
    """
    return positions[:, None, :].expand(-1, keys.shape[1], -1).float()


def knorm(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """Minus the norm of the key: small keys draw most attention (Devoto et al. 2024, arXiv 2406.11430)."""
    return -torch.linalg.vector_norm(keys.float(), dim=-1)


def random(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """A hash of position and head: every key is as likely to go, and the same ones however a text is cut.

    A baseline. Layers share their choice, since a score doesn't know its layer.
    """
    head = torch.arange(keys.shape[1], device=keys.device)[None, :, None]
    # Two rounds of multiply and shift on 32 bits; no product reaches 2^63.
    bits = (positions[:, None, :] * 2654435761 + head * 2246822519 + 374761393) & 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 73244475) & 0xFFFFFFFF
    return ((bits ^ (bits >> 16)) >> 8).float()  # 24 bits: what a float32 holds exactly


SCORES = {
    "published": Score(published, needs_filters=True, recent=a_half),
    "trained": Score(trained, needs_filters=True, recent=an_eighth_to_half, reads_all_heads=True),
    "recency": Score(recency, needs_filters=False),
    "knorm": Score(knorm, needs_filters=False),
    "random": Score(random, needs_filters=False),
}
