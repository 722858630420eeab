"""flash-attn (github.com/Dao-AILab/flash-attention), where it is installed: CUDA, half precision."""

import importlib.util

import torch


def is_installed() -> bool:
    """Whether flash-attn can be imported."""
    return importlib.util.find_spec("flash_attn") is not None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels`; grouped heads and lower-right alignment are flash-attn's own."""
    from flash_attn import flash_attn_func

    out, lse, _ = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        softmax_scale=scale,
        causal=causal or window is not None,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        return_attn_probs=True,
    )
    return out.transpose(1, 2), lse
