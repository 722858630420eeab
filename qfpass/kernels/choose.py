"""The table of kernels for many queries, and the choice from it by device, dtype, head size and form."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from . import reference
from .cpu import flash
from .cuda import flash_attn, sdpa_ops
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
    if head_dim == value_dim:
        for entry in TABLE:
            if entry.takes(device, dtype, head_dim, form.softcap is not None):
                return Kernel(entry.name, entry.function, form.softcap)
    return Kernel("reference", reference.attend, form.softcap)
