"""Keys in eight bits and values in four: a token's numbers depend on that token alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from qfpass.kernels.int4 import dequantize_int4, quantize_to_int4
from qfpass.store.int4_values import Int4ValueSlots
from qfpass.store.int8_slots import dequantize, quantize
from qfpass.store.kv_form import KVForm
from qfpass.store.slots import Slots
from qfpass.store.store_kind import token_nbytes
from qfpass.store.try_store import try_store

CPU = torch.device("cpu")


@given(
    heads=st.integers(1, 3), groups=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_it_is_a_store_kind(heads: int, groups: int, dtype: torch.dtype) -> None:
    try_store(Int4ValueSlots, KVForm(heads, 16, 32 * groups, dtype, CPU))


def test_it_holds_rounded_keys_and_values() -> None:
    keys, values = KVForm(2, 16, 64, torch.float32, CPU).random(3, 5)
    numbers = torch.zeros(3, 2, 5), torch.zeros(3, 2, 5, dtype=torch.int32)
    held_keys, held_values = Int4ValueSlots.of(keys, values, *numbers).dense(torch.float32)
    assert_close(held_keys, dequantize(*quantize(keys), torch.float32), rtol=0, atol=0)
    assert_close(held_values, dequantize_int4(*quantize_to_int4(values), torch.float32), rtol=0, atol=0)


def test_bytes_of_a_token() -> None:
    """64 numbers each: 64 + 4 of the key, 32 + 2 x 2 of the value; bfloat16 has 256."""
    form = KVForm(1, 64, 64, torch.bfloat16, CPU)
    assert (token_nbytes(Int4ValueSlots, form), token_nbytes(Slots, form)) == (104, 256)
