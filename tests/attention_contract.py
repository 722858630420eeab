"""The contract of attention kernels: random operands, and a softmax written here to compare with."""

from collections.abc import Callable
from typing import Any

import torch

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Largest error allowed: two roundings of the dtype, on values of about 1.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
FORMS = ("plain", "causal", "window", "bias")


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, bias: torch.Tensor,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Query by query in float32; bias [B, Hq, Sq, Sk]."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros(*query.shape[:3], value.shape[3])
    lse = torch.zeros(query.shape[:3])
    for h in range(query.shape[1]):
        for i in range(query.shape[2]):
            keys, values = key[:, h // group].float(), value[:, h // group].float()
            logits = torch.einsum("bd,bkd->bk", query[:, h, i].float(), keys) * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            weights = (logits + bias[:, h, i]).exp()
            lse[:, h, i] = weights.sum(-1).log()
            out[:, h, i] = torch.einsum("bk,bkd->bd", weights / weights.sum(-1, keepdim=True), values)
    return out, lse


def hidden(form: str, queries: int, keys: int, window: int) -> torch.Tensor:
    """[queries, keys] float32: -inf where the form hides a key."""
    last = torch.arange(queries) + (keys - queries)
    distance = last[:, None] - torch.arange(keys)
    far = distance >= window if form == "window" else torch.zeros_like(distance, dtype=torch.bool)
    unseen = (distance < 0) | far if form != "plain" else far
    return torch.zeros(queries, keys).masked_fill(unseen, float("-inf"))


def check(
    attend: Attend, form: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    window: int, softcap: float | None = None,
) -> None:  # fmt: skip
    """One call of a kernel against `expected`, values, dtypes and shapes."""
    queries, keys, scale = query.shape[2], key.shape[2], 0.3
    arguments: dict[str, Any] = {}
    if form == "bias":
        # Distances, unlike from head to head, with keys hidden here and there, never the first.
        distance = torch.arange(keys) - torch.arange(queries)[:, None]
        bias = distance * torch.linspace(-0.05, 0.1, query.shape[1])[:, None, None]
        bias = bias.masked_fill((torch.arange(keys) % 3 == 1), float("-inf"))[None]
        bias = bias.to(query.dtype).float()
        arguments["bias"] = bias.to(query.device)
    else:
        bias = hidden(form, queries, keys, window)
        arguments |= {"causal": {"causal": True}, "window": {"window": window}}.get(form, {})
    if softcap is not None:
        arguments["softcap"] = softcap
    out, lse = attend(query, key, value, scale=scale, **arguments)
    assert out.dtype == query.dtype
    assert lse.dtype == torch.float32
    every = bias.expand(query.shape[0], query.shape[1], -1, -1)
    wanted_out, wanted_lse = expected(query.cpu(), key.cpu(), value.cpu(), scale, every, softcap)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(out.float().cpu(), wanted_out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.cpu(), wanted_lse, atol=tolerance, rtol=tolerance)


def random(
    batch: int, kv_heads: int, group: int, queries: int, keys: int, head_dim: int, value_dim: int,
    dtype: torch.dtype, seed: int, device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, kv_heads * group, queries, head_dim),
        (batch, kv_heads, keys, head_dim),
        (batch, kv_heads, keys, value_dim),
    )
    query, key, value = (
        (torch.randn(shape, generator=generator) * 0.7).to(device, dtype) for shape in shapes
    )
    return query, key, value
