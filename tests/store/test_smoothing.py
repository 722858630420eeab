"""Smoothing changes no product of query and key, and evens out the channels of keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from qfpass.store.int8_slots import dequantize, quantize
from qfpass.store.smoothing import FARTHEST, digest_of, smooth, smoothing_factors

HEADS, GROUP, DIM = 2, 3, 16


def keys_with_large_channels(seed: int, size: float) -> torch.Tensor:
    keys = torch.randn(2, HEADS, 40, DIM, generator=torch.Generator().manual_seed(seed))
    keys[:, 0, :, 3] += size
    keys[:, 1, :, 8] -= size
    return keys


@given(
    seed=st.integers(0, 99), size=st.floats(0, 200), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_products_stay_what_they_were(seed: int, size: float, dtype: torch.dtype) -> None:
    """Bit for bit: each term of the sum is the same number."""
    keys = keys_with_large_channels(seed, size).to(dtype)
    query = torch.randn(2, HEADS * GROUP, 1, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)
    factors = smoothing_factors(query, keys).to(dtype)
    smoothed, divided = smooth(query, keys, factors)
    every = keys.repeat_interleave(GROUP, dim=1), divided.repeat_interleave(GROUP, dim=1)
    assert_close(smoothed * every[1], query * every[0], rtol=0, atol=0)


def test_large_channels_no_longer_take_the_bits_of_others() -> None:
    keys = keys_with_large_channels(0, 100.0)
    asked = torch.randn(2, HEADS * GROUP, 5, DIM, generator=torch.Generator().manual_seed(1))
    factors = smoothing_factors(asked, keys)
    _, divided = smooth(asked, keys, factors)
    assert smooth(asked, keys, None) == (asked, keys)
    error = (dequantize(*quantize(divided), torch.float32) - divided) * factors[:, None]
    before = dequantize(*quantize(keys), torch.float32) - keys
    others = torch.ones(HEADS, DIM, dtype=torch.bool)
    others[0, 3] = others[1, 8] = False
    rms = [e.square().mean((0, 2))[others].mean().sqrt() for e in (error, before)]
    assert rms[0] < rms[1] / 10


@pytest.mark.parametrize("largest", [1e18, 1.0, 0.0])
def test_factors_are_powers_of_two_within_range(largest: float) -> None:
    keys = torch.ones(1, HEADS, 4, DIM)
    keys[..., 5], keys[..., 6] = largest, 1e-18
    logarithms = smoothing_factors(torch.ones(1, HEADS * GROUP, 4, DIM), keys).log2()
    assert bool((logarithms % 1 == 0).all()) and bool((logarithms.abs() <= FARTHEST).all())


def test_even_channels_stay_as_they_are() -> None:
    """A key's largest number is what its rounding depends on, and smoothing would only make that larger."""
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(4, heads, 50, DIM, generator=generator) for heads in (HEADS * GROUP, HEADS))
    assert_close(smoothing_factors(query, keys), torch.ones(HEADS, DIM), rtol=0, atol=0)


def test_digests_tell_factors_apart() -> None:
    one, other = torch.ones(2, 4), torch.full((2, 4), 2.0)
    assert digest_of(one) == digest_of(one.bfloat16()) != digest_of(other)
    assert digest_of(None) == ""
