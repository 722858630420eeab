"""PyTorch's CPU FlashAttention kernel, which reads grouped heads as they are and returns the lse."""

import torch

from .reference import visible_keys


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels` for the contract; needs D == Dv."""
    mask = None
    if window is not None:
        seen = visible_keys(query.shape[2], key.shape[2], window, query.device)
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(~seen, float("-inf"))[None, None]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal and window is None, attn_mask=mask, scale=scale
    )
