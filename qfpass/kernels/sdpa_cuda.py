"""PyTorch's own CUDA kernels: flash for half precision, memory-efficient for float32 and windows."""

import torch

from .reference import visible_keys


def attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels`; float16 and bfloat16, D == Dv. A window needs a mask, which flash has not."""
    if window is not None:
        return attend_efficient(query, key, value, scale=scale, window=window)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention.default(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return out, lse


def attend_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels`; any floating dtype."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    bias = None
    if window is not None:
        bias = _aligned_bias(query, key.shape[2], window)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, True, 0.0, causal and window is None, scale=scale
    )
    # The kernel pads the lse's length to a multiple of 32.
    return out, lse[:, :, : query.shape[2]]


def _aligned_bias(query: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """0 and -inf [B, Hq, Sq, Sk], its rows 16 elements aligned, as the kernel wants."""
    batch, heads, queries = query.shape[:3]
    padded = (keys + 15) // 16 * 16
    seen = visible_keys(queries, keys, window, query.device)
    bias = torch.zeros(queries, padded, dtype=query.dtype, device=query.device)
    bias[:, :keys].masked_fill_(~seen, float("-inf"))
    return bias[:, :keys].expand(batch, heads, queries, keys)
