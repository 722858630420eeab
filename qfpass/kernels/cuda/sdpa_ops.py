"""PyTorch's CUDA kernels as custom operators, to which Inductor passes operands in any layout.

For PyTorch's own operators Inductor would first order the operands' strides. It can't order them when the
number of keys is known only at run time.
"""

from collections.abc import Callable

import torch

from . import sdpa

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _operator(name: str, attend: Attend) -> torch.library.CustomOpDef:
    def call(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attend(query, key, value, scale=scale, causal=causal, window=window, bias=bias)
        # The layout of `_fake`, in which flash gives its output.
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()

    operator = torch.library.custom_op(
        f"qfpass::{name}", call, mutates_args=(), device_types="cuda", tags=(torch.Tag.flexible_layout,)
    )
    operator.register_fake(_fake)
    return operator


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty out and lse; in memory, out is [B, Sq, Hq, Dv], as the product after the attention reads it."""
    batch, heads, queries = query.shape[:3]
    out = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    return out, query.new_empty(batch, heads, queries, dtype=torch.float32)


FLASH = _operator("sdpa_flash", sdpa.attend_flash)
EFFICIENT = _operator("sdpa_efficient", sdpa.attend_efficient)


def _by_contract(operator: torch.library.CustomOpDef) -> Attend:
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
        """Attention (out, lse) as `qfpass.kernels` specifies it; see the function of this name in `sdpa`."""
        return operator(query, key, value, bias, scale, causal, window)

    return attend


attend_flash, attend_efficient = _by_contract(FLASH), _by_contract(EFFICIENT)
