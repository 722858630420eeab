"""Attention of one query a head over a store, by the Triton kernels."""

import importlib.util

import torch

from .op import attend_slots

OLDEST = (8, 0)  # the compute capability that products in bfloat16 need


def is_installed() -> bool:
    """Whether Triton can be found, and this process's GPU, if it sees one, is Ampere or newer."""
    if importlib.util.find_spec("triton") is None:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= OLDEST


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out [B, Hq, 1, Dv], lse [B, Hq, 1]) as `kernels.choose.choose_step_kernel` specifies it."""
    return attend_slots(query, key, value, *(scales or (None, None)), bias, lengths, scale, softcap)
