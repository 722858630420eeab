"""The tables of kernels, and the choice from them by device, dtype, head size and form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from . import reference
from .cpu import flash
from .cuda import flash_attn, sdpa_ops
from .cuda.step_attention import attend as triton_step
from .form import AttentionForm
from .kernel import Kernel

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class KernelEntry:
    """A kernel, and what it takes: keys and values of one head size.

    Attributes:
        dtypes: None for any.
        widest: the largest head size; None for any.
        caps: whether it applies a soft cap.
        is_installed: whether it can be used in this process.
    """

    name: str
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    device: str
    dtypes: tuple[torch.dtype, ...] | None = None
    widest: int | None = None
    caps: bool = False
    is_installed: Callable[[], bool] = lambda: True

    def takes(self, device: torch.device, dtype: torch.dtype, head_dim: int, is_capped: bool) -> bool:
        """Whether it is for this device, dtype, head size and form, and installed."""
        return (
            device.type == self.device
            and (self.dtypes is None or dtype in self.dtypes)
            and (self.widest is None or head_dim <= self.widest)
            and (self.caps or not is_capped)
            and self.is_installed()
        )


# The first that fits is taken, else the reference. A kernel for another device is a file and a line here.
TABLE = (
    KernelEntry("cpu flash", flash.attend, "cpu"),
    KernelEntry(
        "flash-attn", flash_attn.attend, "cuda", HALF, widest=256, caps=True,
        is_installed=lambda: flash_attn.is_installed(),
    ),
    KernelEntry("sdpa flash", sdpa_ops.attend_flash, "cuda", HALF, widest=256),
    KernelEntry("sdpa efficient", sdpa_ops.attend_efficient, "cuda", (*HALF, torch.float32)),
)  # fmt: skip
# For one query a row over a store, see `choose_step_kernel`; where none fits, those above read steps too.
STEPS = tuple(
    KernelEntry(
        "triton", triton_step.attend, "cuda", dtypes, widest=widest, caps=True,
        is_installed=lambda: triton_step.is_installed(),
    )
    for dtypes, widest in ((HALF, 512), ((torch.float32,), 256))
)  # fmt: skip


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
    found = _first(TABLE, device, dtype, head_dim, form) if head_dim == value_dim else None
    return found or Kernel("reference", reference.attend, form.softcap)


def choose_step_kernel(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    form: AttentionForm,
    own: Kernel | None = None,
) -> Kernel | None:
    """The kernel for one query a row over a store; None where the one for many queries reads steps too.

    It is attend(query, key, value, *, scale, scales=None, bias=None, lengths=None, softcap=None), of query
    [B, Hq, 1, D], key [B, Hkv, Sk, D] and value [B, Hkv, Sk, Dv]; bias and what it gives are as in
    `qfpass.kernels`. With `scales` key and value are codes, as `cuda.step_attention.op.attend_slots` takes
    them. Row b sees its first lengths[b] keys.
    """
    if own is not None:
        return None  # the caller's kernel reads steps too
    return _first(STEPS, device, dtype, max(head_dim, value_dim), form)


def _first(
    table: Sequence[KernelEntry], device: torch.device, dtype: torch.dtype, widest: int, form: AttentionForm
) -> Kernel | None:
    """The first kernel of a table for heads of at most this size; None if none fits."""
    for entry in table:
        if entry.takes(device, dtype, widest, form.softcap is not None):
            return Kernel(entry.name, entry.function, form.softcap)
    return None
