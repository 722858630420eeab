"""Numbers packed in four bits, against the numbers they were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from qfpass.kernels.int4 import GROUP, LARGEST, dequantize_int4, quantize_to_int4


@given(
    groups=st.integers(1, 4), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_rounding_errs_by_half_a_step(groups: int, size: float, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(2, 3, groups * GROUP, generator=generator) * size).to(dtype)
    codes, scales = quantize_to_int4(tensor)
    assert (codes.shape, codes.dtype) == ((2, 3, groups * GROUP // 2), torch.uint8)
    assert (scales.shape, scales.dtype) == ((2, 3, groups), torch.bfloat16)
    error = (dequantize_int4(codes, scales, torch.float32) - tensor.float()).abs().unflatten(-1, (-1, GROUP))
    largest = tensor.float().abs().unflatten(-1, (-1, GROUP)).amax(-1, keepdim=True)
    # The scale itself is rounded to bfloat16, by one part in 256 at most.
    assert (error <= largest * (0.5 / LARGEST) * 1.01 + largest / 250).all()


def test_every_code_keeps_its_place() -> None:
    numbers = torch.arange(2 * GROUP).float() % (2 * LARGEST + 1) - LARGEST
    assert_close(dequantize_int4(*quantize_to_int4(numbers), torch.float32), numbers, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    codes, scales = quantize_to_int4(torch.zeros(3, GROUP, dtype=dtype))
    assert_close(dequantize_int4(codes, scales, dtype), torch.zeros(3, GROUP, dtype=dtype))
    empty = dequantize_int4(torch.zeros_like(codes), torch.zeros_like(scales), dtype)
    assert_close(empty, torch.zeros(3, GROUP, dtype=dtype))  # an empty slot's
