"""PyTorch's CUDA kernels as operators of our own, which Inductor calls with operands as they lie.

It would bring those of the kernels themselves into a layout first, by comparing their strides, which a
number of keys known only at run time doesn't allow.
"""

from collections.abc import Callable

import torch

from . import sdpa_cuda

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
        # As `_fake` says; flash gives its output so.
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
    """Heads behind the queries in memory, as the next layer's product reads them."""
    batch, heads, queries = query.shape[:3]
    out = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    return out, query.new_empty(batch, heads, queries, dtype=torch.float32)


FLASH = _operator("sdpa_flash", sdpa_cuda.attend_flash)
EFFICIENT = _operator("sdpa_efficient", sdpa_cuda.attend_efficient)


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
        """See `qfpass.kernels`, and the function of this name in `sdpa_cuda`."""
        return operator(query, key, value, bias, scale, causal, window)

    return attend


attend_flash, attend_efficient = _by_contract(FLASH), _by_contract(EFFICIENT)
