"""Attention kernels behind one contract.

A kernel is attend(query, key, value, *, scale, causal=False, window=None, lengths=None) -> (out, lse):
- query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], one floating dtype, any
  strides, Sk at least 1; query head h reads kv head h // (Hq / Hkv);
- plain: every query sees every key. `causal`: query i sees keys up to i, and Sq == Sk. `window` w
  (which implies causal): query i sees the w keys that end at i + Sk - Sq, and Sk >= Sq. So every
  query sees a key. Called eagerly, a kernel raises InputError for other lengths;
- lengths [B] int64, plain form only: row b shows the first lengths[b] keys alone, at least one, or all
  Sk if that is fewer; what lies behind them must be finite;
- out [B, Hq, Sq, Dv] in the query's dtype; lse [B, Hq, Sq] float32, the natural log of the sum of
  the exponentials of the logits `scale * <query, key>`.

`join` puts two calls over disjoint keys together. Either length may be symbolic, and Sk unbacked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import cpu, flash, reference, sdpa_cuda
from .join import join

__all__ = ["Kernel", "choose", "join"]

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """A kernel function and the name that reports show."""

    name: str
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int) -> Kernel:
    """The fastest kernel that fits; "reference", plain float32 softmax, where no fused one does."""
    if head_dim == value_dim and device.type == "cpu":
        return Kernel("cpu flash", cpu.attend)
    if head_dim == value_dim and device.type == "cuda":
        if dtype in HALF and head_dim <= 256:
            if flash.is_installed():
                return Kernel("flash-attn", flash.attend)
            return Kernel("sdpa flash", sdpa_cuda.attend_flash)
        if dtype in (*HALF, torch.float32):
            return Kernel("sdpa efficient", sdpa_cuda.attend_efficient)
    return Kernel("reference", reference.attend)
