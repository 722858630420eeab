"""torch's fused attention kernels that give the log-sum-exp too, as F.scaled_dot_product_attention doesn't.

Query [B, Hq, Sq, D], key and value [B, Hkv, Sk, D] -> out [B, Hq, Sq, D], lse [B, Hq, Sq].
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
    """Attention on a processor, with a float32 bias or none; Hkv divides Hq. Rows must be dense.

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
    """Attention on a GPU in half precision; Hkv divides Hq. Rows must be dense, a multiple of 8 wide.

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
    """Attention on a GPU in any precision, Hkv = Hq, with a bias in the query's dtype or none.

    Rows must be dense, a multiple of 8 wide, and a bias's rows a multiple of 16 apart. The lse may be longer
    than Sq.

    Without it: neither float32 nor windows can be compiled for a GPU.
    """
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return out, lse
