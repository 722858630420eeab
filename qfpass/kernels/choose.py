"""The choice of a kernel for many queries, by device, dtype, head size and form."""

from dataclasses import replace

import torch

from . import reference
from .cpu import flash
from .cuda import flash_attn, sdpa_ops
from .form import AttentionForm
from .kernel import Kernel

HALF = (torch.float16, torch.bfloat16)


def choose_kernel(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    form: AttentionForm,
    own: Kernel | None = None,
) -> Kernel:
    """The caller's `own` kernel, or the fastest for these; "reference" is plain float32 softmax."""
    if own is not None:
        return replace(own, softcap=form.softcap)
    if form.softcap is not None:
        return _choose_capped(device, dtype, head_dim, value_dim, form.softcap)
    if head_dim == value_dim and device.type == "cpu":
        return Kernel("cpu flash", flash.attend)
    if head_dim == value_dim and device.type == "cuda":
        if dtype in HALF and head_dim <= 256:
            if flash_attn.is_installed():
                return Kernel("flash-attn", flash_attn.attend)
            return Kernel("sdpa flash", sdpa_ops.attend_flash)
        if dtype in (*HALF, torch.float32):
            return Kernel("sdpa efficient", sdpa_ops.attend_efficient)
    return Kernel("reference", reference.attend)


def _choose_capped(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: float
) -> Kernel:
    fits = head_dim == value_dim <= 256 and dtype in HALF
    if device.type == "cuda" and fits and flash_attn.is_installed():
        return Kernel("flash-attn", flash_attn.attend, softcap)
    return Kernel("reference", reference.attend, softcap)
