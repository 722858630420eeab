"""Attention by PyTorch's CPU FlashAttention kernel, which takes grouped heads and returns log-sum-exps."""

import torch

from ...upstream.attention_ops import flash_on_processor
from ..operands import check_form, dense_rows, window_bias


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
    """Attention (out, lse) as `qfpass.kernels` specifies it, for D == Dv. A window needs a mask [Sq, Sk]."""
    check_form(query, key, causal, window, bias)
    query, key, value = dense_rows(query), dense_rows(key), dense_rows(value)
    if window is not None:
        bias = window_bias(query, key.shape[2], window)[None, None]
    elif bias is not None:
        bias = bias.float()
    out, lse = flash_on_processor(query, key, value, causal and window is None, bias, scale)
    return out, lse.float()
