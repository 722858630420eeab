"""Numbers packed in four bits, against the numbers they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from qfpass.kernels.int4 import GROUP, LARGEST, ZERO, dequantize_int4, quantize_to_int4


def error(tensor: torch.Tensor) -> torch.Tensor:
    """What packing does to each number, in groups [..., 32]."""
    codes, scales = quantize_to_int4(tensor)
    return (dequantize_int4(codes, scales, torch.float32) - tensor.float()).unflatten(-1, (-1, GROUP))


@given(
    groups=st.integers(1, 4), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_rounding_errs_by_half_a_step(groups: int, size: float, seed: int, dtype: torch.dtype) -> None:
    """A step is an eighth of the largest magnitude; beyond 7 of them on the other side it errs by one."""
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(2, 3, groups * GROUP, generator=generator) * size).to(dtype)
    codes, scales = quantize_to_int4(tensor)
    assert (codes.shape, codes.dtype) == ((2, 3, groups * GROUP // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((2, 3, groups), torch.bfloat16)
    numbers = tensor.float().unflatten(-1, (-1, GROUP))
    steps = -scales.float()[..., None]  # the largest magnitude is 8 of them
    bound = torch.where(numbers / steps < -LARGEST, 1.0, 0.5) * steps.abs()
    # The scale itself is rounded to bfloat16, by one part in 256 at most.
    assert (error(tensor).abs() <= bound * 1.01 + steps.abs() / 30).all()


def test_sixteen_levels_are_used() -> None:
    """Of random numbers, a fifth less squared error than with levels from -7 to 7."""
    tensor = torch.randn(1000, GROUP, generator=torch.Generator().manual_seed(0))
    step = tensor.abs().amax(-1, keepdim=True) / LARGEST
    plain = (tensor / step).round() * step - tensor
    assert error(tensor).square().mean() < 0.8 * plain.square().mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_every_code_keeps_its_place(sign: int) -> None:
    numbers = sign * (torch.arange(2 * GROUP).float() % (ZERO + LARGEST + 1) - ZERO)
    assert_close(dequantize_int4(*quantize_to_int4(numbers), torch.float32), numbers, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    codes, scales = quantize_to_int4(torch.zeros(3, GROUP, dtype=dtype))
    assert_close(dequantize_int4(codes, scales, dtype), torch.zeros(3, GROUP, dtype=dtype))
    empty = dequantize_int4(torch.zeros_like(codes), torch.zeros_like(scales), dtype)
    assert_close(empty, torch.zeros(3, GROUP, dtype=dtype))  # an empty slot's
