"""PyTorch's CPU FlashAttention kernel: grouped heads read as they are, log-sum-exp returned."""

import torch

from .operands import check_lengths, dense_rows, length_bias, window_bias


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels` for the contract; needs D == Dv. Masks are built for a window and lengths."""
    check_lengths(query, key, causal, window, lengths)
    query, key, value = dense_rows(query), dense_rows(key), dense_rows(value)
    mask = None
    if window is not None:
        mask = window_bias(query, key.shape[2], window)[None, None]
    elif lengths is not None:
        mask = length_bias(query, key.shape[2], lengths)[:, None, None, :]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal and window is None, attn_mask=mask, scale=scale
    )
    return out, lse.float()
