"""Attention kernels behind one contract.

A kernel is attend(query, key, value, *, scale, causal=False, window=None, bias=None) -> (out, lse):
- query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], one floating dtype, any
  strides, Sk at least 1; query head h reads kv head h // (Hq / Hkv);
- plain: every query sees every key. `causal`: query i sees keys up to i, and Sq == Sk. `window` w
  (which implies causal): query i sees the w keys that end at i + Sk - Sq, and Sk >= Sq. `bias`
  [1 or B, 1 or Hq, Sq, Sk] is added to the logits, -inf hides a key, and comes with neither of the
  two. Every query sees a key. Called eagerly, a kernel raises InputError for other lengths and forms;
- out [B, Hq, Sq, Dv] in the query's dtype; lse [B, Hq, Sq] float32, the natural log of the sum of
  the exponentials of the logits `scale * <query, key> + bias`.

Some also take softcap=c, for logits c * tanh(scale * <query, key> / c) + bias.

`join` puts two calls over disjoint keys together. Either length may be symbolic, and Sk unbacked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import cpu, flash, reference, sdpa_ops
from .join import join

__all__ = ["Kernel", "choose", "join"]

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernel:
    """A kernel function and the name that reports show."""

    name: str
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    softcap: float | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **form: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the kernel, its logits soft-capped if it was chosen for that."""
        if self.softcap is not None:
            form["softcap"] = self.softcap
        return self.function(query, key, value, **form)


def choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    softcap: float | None = None,
) -> Kernel:
    """The fastest kernel that fits; "reference", plain float32 softmax, where no fused one does."""
    if softcap is not None:
        return _choose_capped(device, dtype, head_dim, value_dim, softcap)
    if head_dim == value_dim and device.type == "cpu":
        return Kernel("cpu flash", cpu.attend)
    if head_dim == value_dim and device.type == "cuda":
        if dtype in HALF and head_dim <= 256:
            if flash.is_installed():
                return Kernel("flash-attn", flash.attend)
            return Kernel("sdpa flash", sdpa_ops.attend_flash)
        if dtype in (*HALF, torch.float32):
            return Kernel("sdpa efficient", sdpa_ops.attend_efficient)
    return Kernel("reference", reference.attend)


def _choose_capped(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: float
) -> Kernel:
    fits = head_dim == value_dim <= 256 and dtype in HALF
    if device.type == "cuda" and fits and flash.is_installed():
        return Kernel("flash-attn", flash.attend, softcap)
    return Kernel("reference", reference.attend, softcap)
