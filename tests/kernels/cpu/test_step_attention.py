"""Attention of one query a head against softmax, and against the same keys and values unquantised."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qfpass.kernels import reference
from qfpass.kernels.cpu.step_attention.attend import attend_step
from qfpass.store.int8_slots import dequantize, quantize

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SCALE = 0.3


def operands(
    batch: int, kv_heads: int, group: int, keys: int, dtype: torch.dtype, seed: int
) -> list[torch.Tensor]:
    """Query, key and value; values of another dimension than keys."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, kv_heads * group, 1, 16), (batch, kv_heads, keys, 16), (batch, kv_heads, keys, 5))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def hiding_some(keys: int, heads: int) -> torch.Tensor:
    """A bias [1, heads, 1, keys] that hides every third key."""
    slope = torch.linspace(-0.05, 0.1, heads)[:, None, None] * torch.arange(keys)
    return slope.masked_fill(torch.arange(keys) % 3 == 1, float("-inf"))[None]


@given(
    batch=st.integers(1, 3), kv_heads=st.integers(1, 3), group=st.integers(1, 4), keys=st.integers(1, 40),
    dtype=st.sampled_from(list(TOLERANCE)), biased=st.booleans(), softcap=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40)
def test_agrees_with_softmax(
    batch: int, kv_heads: int, group: int, keys: int, dtype: torch.dtype, biased: bool,
    softcap: float | None, seed: int,
) -> None:  # fmt: skip
    query, key, value = operands(batch, kv_heads, group, keys, dtype, seed)
    form = {
        "scale": SCALE,
        "softcap": softcap,
        "bias": hiding_some(keys, kv_heads * group) if biased else None,
    }
    out, lse = attend_step(query, key, value, **form)
    wanted, wanted_lse = reference.attend(query.float(), key.float(), value.float(), **form)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, wanted_lse, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("biased", [False, True])
def test_reads_eight_bits(biased: bool) -> None:
    query, key, value = operands(2, 3, 2, 30, torch.float32, seed=0)
    (key_codes, key_scales), (value_codes, value_scales) = quantize(key), quantize(value)
    form = {"scale": SCALE, "bias": hiding_some(30, 6) if biased else None}
    read = attend_step(query, key_codes, value_codes, scales=(key_scales, value_scales), **form)
    keys = dequantize(key_codes, key_scales, torch.float32)
    values = dequantize(value_codes, value_scales, torch.float32)
    torch.testing.assert_close(read, reference.attend(query, keys, values, **form), rtol=2e-5, atol=2e-5)


class Steps(nn.Module):
    """One query over the keys of a store that are filled."""

    def forward(self, query: torch.Tensor, store: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        past = store.narrow(2, 0, visible.shape[0])
        return attend_step(query, past, past, scale=SCALE)[0]


def test_one_graph_serves_any_number_of_keys() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    from qfpass.kernels.cpu import lowerings

    lowerings.register()

    query, store, _ = operands(1, 2, 3, 40, torch.float32, seed=0)
    counter = CompileCounterWithBackend("inductor")
    module = torch.compile(Steps(), backend=counter, fullgraph=True)
    for count in (1, 2, 17, 40):
        visible = torch.empty(count)
        torch._dynamo.decorators.mark_unbacked(visible, 0)
        past = store[:, :, :count]
        wanted, _ = reference.attend(query, past, past, scale=SCALE)
        torch.testing.assert_close(module(query, store, visible), wanted, rtol=2e-5, atol=2e-5)
    assert counter.frame_count == 1
