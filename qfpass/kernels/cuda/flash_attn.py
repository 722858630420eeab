"""Attention by the flash-attn package (github.com/Dao-AILab/flash-attention): CUDA, half precision."""

import importlib.util

import torch

from .. import reference
from ..operands import check_form
from . import sdpa_ops


def is_installed() -> bool:
    """Whether the flash-attn package can be found; it is imported only when it is used."""
    return importlib.util.find_spec("flash_attn") is not None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out, lse) as `qfpass.kernels` specifies it.

    It takes float16 and bfloat16, D == Dv <= 256, on Ampere or newer. flash-attn supports grouped heads,
    windows, soft caps and the alignment at the lower right, but no bias: with a bias PyTorch's
    memory-efficient kernel runs, or the reference if there is a soft cap too.
    """
    if bias is not None:
        if softcap is not None:
            return reference.attend(query, key, value, scale=scale, bias=bias, softcap=softcap)
        return sdpa_ops.attend_efficient(query, key, value, scale=scale, bias=bias)
    from flash_attn import flash_attn_func

    check_form(query, key, causal, window, bias)
    out, lse, _ = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        softmax_scale=scale,
        causal=causal or window is not None,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
        return_attn_probs=True,
    )
    return out.transpose(1, 2), lse
