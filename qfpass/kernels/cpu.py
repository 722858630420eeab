"""PyTorch's CPU FlashAttention kernel: grouped heads read as they are, log-sum-exp returned."""

import torch

from ..upstream.attention_ops import flash_on_processor
from .operands import check_form, dense_rows, window_bias


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels` for the contract; needs D == Dv. A window builds a [Sq, Sk] mask."""
    check_form(query, key, causal, window, bias)
    query, key, value = dense_rows(query), dense_rows(key), dense_rows(value)
    if window is not None:
        bias = window_bias(query, key.shape[2], window)[None, None]
    elif bias is not None:
        bias = bias.float()
    out, lse = flash_on_processor(query, key, value, causal and window is None, bias, scale)
    return out, lse.float()
