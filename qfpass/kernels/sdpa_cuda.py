"""PyTorch's own CUDA kernels: flash for half precision, memory-efficient for float32 and windows."""

import torch
from torch.nn import functional as F

from .operands import check_lengths, dense_rows, length_bias, window_bias


def attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels`; float16 and bfloat16, D == Dv <= 256, Ampere or newer.

    Flash reads grouped heads as they are but takes no mask: a window and lengths run `attend_efficient`.
    """
    if window is not None or lengths is not None:
        return attend_efficient(query, key, value, scale=scale, causal=causal, window=window, lengths=lengths)
    check_lengths(query, key, causal, window)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention.default(
        _aligned(query), _aligned(key), _aligned(value), 0.0, causal, False, scale=scale
    )
    return out.narrow(3, 0, value.shape[3]), lse


def attend_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels`; float32, float16 and bfloat16. A window and lengths build a mask."""
    check_lengths(query, key, causal, window, lengths)
    batch, kv_heads, keys = key.shape[:3]
    group, queries, value_dim = query.shape[1] // kv_heads, query.shape[2], value.shape[3]
    # Each kv head becomes a row of the batch, whose heads share one key by a stride of 0.
    query = _aligned(query).unflatten(1, (kv_heads, group)).flatten(0, 1)
    key = _aligned(key).flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    value = _aligned(value).flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    bias = None
    if window is not None:
        bias = window_bias(query, keys, window).expand(batch * kv_heads, group, queries, keys)
    elif lengths is not None:
        bias = length_bias(query, keys, lengths.repeat_interleave(kv_heads))[:, None, None, :]
        bias = bias.expand(-1, group, queries, -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, True, 0.0, causal and window is None, scale=scale
    )
    out = out.narrow(3, 0, value_dim).unflatten(0, (batch, kv_heads)).flatten(1, 2)
    # The kernel pads the lse's length to a multiple of 32.
    return out, lse.narrow(2, 0, queries).unflatten(0, (batch, kv_heads)).flatten(1, 2)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Rows dense and, by zeros, a multiple of 8 wide: what both kernels read. Most heads are."""
    missing = -tensor.shape[3] % 8
    return F.pad(tensor, (0, missing)) if missing else dense_rows(tensor)
