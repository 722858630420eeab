"""Attention kernels behind one contract.

A kernel is a function attend(query, key, value, *, scale, causal=False, window=None) -> (out, lse):
- query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], any strides, Sk at least 1; query
  head h reads kv head h // (Hq / Hkv);
- plain: every query sees every key. `causal`: query i sees keys up to i; Sq == Sk. `window` w: aligned
  at the lower right (Sk >= Sq), query i sees the w keys that end at i + Sk - Sq;
- out [B, Hq, Sq, Dv] in the query's dtype; lse [B, Hq, Sq] float32, the natural log of the sum of the
  exponentials of the scaled logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import cpu, flash, reference, sdpa_cuda
from .join import join

__all__ = ["Kernel", "choose", "join"]


@dataclass(frozen=True)
class Kernel:
    """A kernel function and the name that reports show."""

    name: str
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int) -> Kernel:
    """The fastest kernel that fits; the plain float32 reference where no other does."""
    if head_dim != value_dim:
        return Kernel("reference", reference.attend)
    if device.type == "cpu":
        return Kernel("cpu flash", cpu.attend)
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        if flash.is_installed():
            return Kernel("flash-attn", flash.attend)
        return Kernel("sdpa flash", sdpa_cuda.attend_flash)
    if device.type == "cuda":
        return Kernel("sdpa efficient", sdpa_cuda.attend_efficient)
    return Kernel("reference", reference.attend)
