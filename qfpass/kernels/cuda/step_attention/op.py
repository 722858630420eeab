"""Attention of one query a head over a store as an operator: by Triton on a GPU, and its reference."""

import torch

from ... import reference
from ...int4 import dequantize_int4


@torch.library.custom_op(
    "qfpass::attend_slots", mutates_args=(), device_types="cuda", tags=(torch.Tag.flexible_layout,)
)
def attend_slots(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    lengths: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention's out [B, Hq, 1, Dv] in the query's dtype and its logits' log-sum-exp [B, Hq, 1] float32.

    The operands are query [B, Hq, 1, D], key [B, Hkv, Sk, D] and value [B, Hkv, Sk, Dv], in one dtype, of any
    strides. Keys and values may be int8 with scales [B, Hkv, Sk]; values also uint8, in four bits, as
    `kernels.int4` packs them: [B, Hkv, Sk, Dv / 2] with scales [B, Hkv, Sk, Dv / 32]. `bias`
    [1 or B, 1 or Hq, 1, Sk] is added to the logits. Row b sees its first lengths[b] keys, all by default; a
    row that sees none has out 0 and lse -inf.
    """
    from .launch import launch

    with torch.cuda.device_of(query):  # Triton launches on the current device, whatever its operands' is
        return launch(query, key, value, key_scale, value_scale, bias, lengths, scale, softcap)


@attend_slots.register_fake
def _fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = value.shape[3] * (2 if value.dtype == torch.uint8 else 1)
    rows, heads = query.shape[:2]
    return query.new_empty(rows, heads, 1, numbers), query.new_empty(rows, heads, 1, dtype=torch.float32)


def attend_by_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    lengths: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `attend_slots` computes, in float32, on any device: what the kernels are compared with."""
    key, value = _numbers(key, key_scale), _numbers(value, value_scale)
    if lengths is not None:
        hidden = torch.arange(key.shape[2], device=key.device) >= lengths[:, None, None, None]
        key, value = (each.masked_fill(hidden.mT, 0) for each in (key, value))  # whatever lies there
        by_row = torch.zeros(hidden.shape, device=key.device).masked_fill(hidden, float("-inf"))
        bias = by_row if bias is None else bias + by_row
    out, lse = reference.attend(query, key, value, scale=scale, bias=bias, softcap=softcap)
    if lengths is not None:  # where there is no key, -inf minus -inf was NaN
        is_empty = (lengths == 0)[:, None, None]
        out, lse = out.masked_fill(is_empty[..., None], 0.0), lse.masked_fill(is_empty, float("-inf"))
    return out, lse


def _numbers(stored: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The numbers [B, Hkv, Sk, n] of keys or values, in float32 if they are stored in codes."""
    if scales is None:
        return stored
    if stored.dtype == torch.uint8:
        return dequantize_int4(stored, scales, torch.float32)
    return stored.float() * scales[..., None]
