"""Attention by PyTorch's CUDA kernels: flash for half precision, memory-efficient for all else."""

import torch
from torch.nn import functional as F

from ...upstream.attention_ops import efficient_on_cuda, flash_on_cuda
from ..operands import check_form, dense_rows, window_bias


def attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out, lse) as `qfpass.kernels` specifies it, by the flash kernel.

    It takes float16 and bfloat16, D == Dv <= 256, on Ampere or newer. Flash supports grouped heads but no
    mask: with a window or a bias, `attend_efficient` runs.
    """
    if window is not None or bias is not None:
        return attend_efficient(query, key, value, scale=scale, window=window, bias=bias)
    check_form(query, key, causal, window, bias)
    out, lse = flash_on_cuda(_aligned(query), _aligned(key), _aligned(value), causal, scale)
    return out.narrow(3, 0, value.shape[3]), lse


def attend_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out, lse) as `qfpass.kernels` specifies it, by the memory-efficient kernel.

    It takes float32, float16 and bfloat16. A window needs a mask [Sq, Sk].
    """
    check_form(query, key, causal, window, bias)
    batch, kv_heads, keys = key.shape[:3]
    group, queries, value_dim = query.shape[1] // kv_heads, query.shape[2], value.shape[3]
    # Hkv must be Hq, so each kv head becomes a row of the batch, whose heads share a key by a stride of 0.
    query = _aligned(query).unflatten(1, (kv_heads, group)).flatten(0, 1)
    key = _aligned(key).flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    value = _aligned(value).flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    if window is not None:
        bias = window_bias(query, keys, window).expand(batch * kv_heads, group, queries, keys)
    elif bias is not None:
        bias = _every_head(bias.to(query.dtype), batch, kv_heads, group)
    out, lse = efficient_on_cuda(query, key, value, bias, causal and window is None, scale)
    out = out.narrow(3, 0, value_dim).unflatten(0, (batch, kv_heads)).flatten(1, 2)
    # The kernel pads the lse to a multiple of 32 queries.
    return out, lse.narrow(2, 0, queries).unflatten(0, (batch, kv_heads)).flatten(1, 2)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with dense rows, padded with zeros to a multiple of 8 numbers, as both kernels need them."""
    missing = -tensor.shape[3] % 8
    return F.pad(tensor, (0, missing)) if missing else dense_rows(tensor)


def _every_head(bias: torch.Tensor, batch: int, kv_heads: int, group: int) -> torch.Tensor:
    """The bias [1 or B, 1 or Hq, Sq, Sk] as [B * Hkv, group, Sq, Sk], with rows a multiple of 16 apart."""
    keys = bias.shape[3]
    wide = F.pad(bias, (0, (keys + 15) // 16 * 16 - keys))
    wide = wide.expand(batch, kv_heads * group, -1, -1).unflatten(1, (kv_heads, group)).flatten(0, 1)
    return wide.narrow(3, 0, keys)
