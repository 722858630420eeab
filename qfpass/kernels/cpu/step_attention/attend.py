"""Attention of one query a head, written so that Inductor's code reads each key and value once.

A library's kernel is made for many queries; for one it reaches a third of the memory's bandwidth. On
processors Inductor gets the C++ loops of `attend_one`. Where these don't fit, multiply and sum become two of
Inductor's loops. Both read int8 keys and values, and values in four bits, directly.
"""

import torch

from ...int4 import dequantize_int4
from .computed_once import computed_once
from .op import attend_one, fits


def attend_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    own_loops: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out [B, Hq, 1, Dv], lse [B, Hq, 1]) of one query a head, as `qfpass.kernels` specifies it.

    The operands are query [B, Hq, 1, D], key [B, Hkv, Sk, D] and value [B, Hkv, Sk, Dv]. `scales` are the
    factors [B, Hkv, Sk] of keys and of values, if these are int8; values may be packed in four bits too, as
    `attend_one` takes them. `own_loops` allows `attend_one`.
    """
    if not own_loops or bias is not None or softcap is not None or not fits(key, value, scales):
        return attend_written_out(query, key, value, scale=scale, scales=scales, bias=bias, softcap=softcap)
    joined = attend_one(_grouped(query, key, scale), key, value, *(scales or (None, None)))
    out, lse = joined[..., :-1], joined[..., -1]
    return out.flatten(1, 2).unsqueeze(2).to(query.dtype), lse.flatten(1, 2).unsqueeze(2)


def attend_written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `attend_step`, by multiply and sum; takes any form and layout."""
    key_scale, value_scale = scales or (None, None)
    if value.dtype == torch.uint8:
        assert value_scale is not None, "packed values have scales"
        value, value_scale = dequantize_int4(value, value_scale, torch.float32), None
    # b: batch, h: kv head, g: query head of its group, k: key, d: dimension.
    logits = (_grouped(query, key, scale).unsqueeze(3) * key[:, :, None].float()).sum(-1)
    if key_scale is not None:
        logits = logits * key_scale[:, :, None]
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if bias is not None:
        every_head = bias.float().expand(-1, query.shape[1], -1, -1)
        logits = logits + every_head.squeeze(2).unflatten(1, (key.shape[1], -1))
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp()
    total = weights.sum(-1, keepdim=True)
    if value_scale is not None:
        weights = weights * value_scale[:, :, None]
    out = (weights[..., None] * value[:, :, None].float()).sum(-2) / total
    lse = peak + total.log()
    return out.flatten(1, 2).unsqueeze(2).to(query.dtype), lse.flatten(1, 2)


def _grouped(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """The query [B, Hq, 1, D] as [B, Hkv, G, D] float32, scaled.

    It is written to memory, or a loop over keys would compute it, rotation included, for every key.
    """
    return computed_once(query.float().unflatten(1, (key.shape[1], -1)).squeeze(3) * scale)
