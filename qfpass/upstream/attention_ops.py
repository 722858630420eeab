"""torch's fused attention kernels that also return the log-sum-exp (lse).

F.scaled_dot_product_attention doesn't return it. All take query [B, Hq, Sq, D], key and value [B, Hkv, Sk, D]
and return out [B, Hq, Sq, D] and lse [B, Hq, Sq].
"""

import torch

from .entry import Needed


@Needed
def flash_on_processor(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and lse on a CPU, with a float32 bias or none; Hkv divides Hq. Rows must be contiguous.

    Without it: nothing can be compiled for a processor.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    return out, lse


@Needed
def flash_on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and lse on a GPU in half precision; Hkv divides Hq. Rows: contiguous, a multiple of 8 wide.

    Without it: nothing in half precision can be compiled for a GPU.
    """
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention.default(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return out, lse


@Needed
def efficient_on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and lse on a GPU in any precision, Hkv = Hq, with a bias in the query's dtype or none.

    Rows must be contiguous and a multiple of 8 wide; the stride of a bias's rows must be a multiple of 16.
    The lse may be longer than Sq.

    Without it: neither float32 nor windows can be compiled for a GPU.
    """
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return out, lse
