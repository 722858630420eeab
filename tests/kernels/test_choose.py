"""Which kernel runs where, by name."""

import pytest
import torch

from qfpass.kernels import Kernel, choose, cpu, flash, reference, sdpa_ops

FLASH_ATTN = Kernel("flash-attn", flash.attend)
SDPA_FLASH = Kernel("sdpa flash", sdpa_ops.attend_flash)
EFFICIENT = Kernel("sdpa efficient", sdpa_ops.attend_efficient)
REFERENCE = Kernel("reference", reference.attend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpu_takes_flash_unless_values_have_a_dimension_of_their_own(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    assert choose(device, dtype, 64, 64) == Kernel("cpu flash", cpu.attend)
    assert choose(device, dtype, 64, 32) == REFERENCE


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_takes_flash_for_half_precision(
    installed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "is_installed", lambda: installed)
    device = torch.device("cuda")
    assert choose(device, dtype, 128, 128) == (FLASH_ATTN if installed else SDPA_FLASH)
    assert choose(device, dtype, 512, 512) == EFFICIENT
    assert choose(device, dtype, 128, 64) == REFERENCE


def test_cuda_takes_no_flash_for_wider_precision() -> None:
    device = torch.device("cuda")
    assert choose(device, torch.float32, 128, 128) == EFFICIENT
    assert choose(device, torch.float64, 128, 128) == REFERENCE


def test_other_devices_take_the_reference() -> None:
    assert choose(torch.device("mps"), torch.float16, 64, 64) == REFERENCE
