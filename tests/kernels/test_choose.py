"""Which kernel runs where, by name."""

import pytest
import torch

from qfpass.kernels import reference
from qfpass.kernels.choose import choose_kernel, choose_step_kernel
from qfpass.kernels.cpu import flash
from qfpass.kernels.cuda import flash_attn, sdpa_ops
from qfpass.kernels.cuda.step_attention import attend as triton_step
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.kernel import Kernel

FLASH_ATTN = Kernel("flash-attn", flash_attn.attend)
SDPA_FLASH = Kernel("sdpa flash", sdpa_ops.attend_flash)
EFFICIENT = Kernel("sdpa efficient", sdpa_ops.attend_efficient)
PLAIN = AttentionForm(scale=1.0)
REFERENCE = Kernel("reference", reference.attend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpu_takes_flash_unless_values_have_a_dimension_of_their_own(dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    assert choose_kernel(device, dtype, 64, 64, PLAIN) == Kernel("cpu flash", flash.attend)
    assert choose_kernel(device, dtype, 64, 32, PLAIN) == REFERENCE


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_takes_flash_for_half_precision(
    installed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_attn, "is_installed", lambda: installed)
    device = torch.device("cuda")
    assert choose_kernel(device, dtype, 128, 128, PLAIN) == (FLASH_ATTN if installed else SDPA_FLASH)
    assert choose_kernel(device, dtype, 512, 512, PLAIN) == EFFICIENT
    assert choose_kernel(device, dtype, 128, 64, PLAIN) == REFERENCE


def test_cuda_takes_no_flash_for_wider_precision() -> None:
    device = torch.device("cuda")
    assert choose_kernel(device, torch.float32, 128, 128, PLAIN) == EFFICIENT
    assert choose_kernel(device, torch.float64, 128, 128, PLAIN) == REFERENCE


def test_other_devices_take_the_reference() -> None:
    assert choose_kernel(torch.device("mps"), torch.float16, 64, 64, PLAIN) == REFERENCE


@pytest.mark.parametrize("installed", [True, False])
def test_a_soft_cap_needs_a_kernel_that_applies_it(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attn, "is_installed", lambda: installed)
    capped, plain = AttentionForm(scale=1.0, softcap=30.0), Kernel("reference", reference.attend, 30.0)
    assert choose_kernel(torch.device("cpu"), torch.float32, 64, 64, capped) == plain
    found = choose_kernel(torch.device("cuda"), torch.bfloat16, 64, 64, capped)
    assert found == (Kernel("flash-attn", flash_attn.attend, 30.0) if installed else plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_on_cuda_are_tritons_where_it_is_installed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_step, "is_installed", lambda: True)
    cuda, capped = torch.device("cuda"), AttentionForm(scale=1.0, softcap=30.0)
    assert choose_step_kernel(cuda, dtype, 128, 128, PLAIN) == Kernel("triton", triton_step.attend)
    assert choose_step_kernel(cuda, dtype, 192, 128, capped) == Kernel("triton", triton_step.attend, 30.0)
    assert (choose_step_kernel(cuda, dtype, 512, 512, PLAIN) is None) == (dtype == torch.float32)
    assert choose_step_kernel(torch.device("cpu"), dtype, 128, 128, PLAIN) is None
    assert choose_step_kernel(cuda, torch.float64, 128, 128, PLAIN) is None
    assert choose_step_kernel(cuda, dtype, 128, 128, PLAIN, own=REFERENCE) is None
    monkeypatch.setattr(triton_step, "is_installed", lambda: False)
    assert choose_step_kernel(cuda, dtype, 128, 128, PLAIN) is None
