"""The eight-bit store against one in float32 that is given the same rounded keys and values."""

import pytest
import torch
from evicting import replace_lowest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.kernels import reference
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.kernel import Kernel
from qfpass.store.int8_slots import Int8Slots, dequantize, quantize
from qfpass.store.kernel_call import KernelCall
from qfpass.store.kv_form import KVForm
from qfpass.store.layer_inputs import LayerInputs
from qfpass.store.slot_attention import SlotAttention
from qfpass.store.slots import Protection, SlotRule, Slots, keep_best
from qfpass.store.store_kind import StoreKind

BATCH, HEADS, GROUP, DIM = 2, 3, 2, 8
CPU = torch.device("cpu")


def random(heads: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(BATCH, heads, count, DIM, generator=torch.Generator().manual_seed(seed))


def rule(slots: int, kind: type[StoreKind]) -> SlotRule:
    return SlotRule(slots, recent=2, sinks=1, score="knorm", store_type=kind)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return dequantize(*quantize(tensor), tensor.dtype)


@given(
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_rounding_errs_by_half_a_step(size: float, seed: int, dtype: torch.dtype) -> None:
    tensor = (random(HEADS, 5, seed) * size).to(dtype)
    codes, scales = quantize(tensor)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
    error = (dequantize(codes, scales, torch.float32) - tensor.float()).abs()
    assert (error <= scales[..., None] * 0.5001).all()
    assert (scales <= tensor.float().abs().amax(-1) / 126.9).all()


def test_zeros_stay_zeros() -> None:
    codes, scales = quantize(torch.zeros(2, 3, 4))
    torch.testing.assert_close(dequantize(codes, scales, torch.float32), torch.zeros(2, 3, 4))


def test_an_empty_store_takes_no_more_than_its_bytes() -> None:
    store = rule(7, Int8Slots).allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU))
    assert isinstance(store, Int8Slots)
    assert (store.keys.dtype, store.values.dtype) == (torch.int8, torch.int8)
    assert (store.positions == -1).all() and (store.scores == float("-inf")).all()


@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=9), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_it_keeps_what_a_float_store_keeps(pieces: list[int], seed: int) -> None:
    key, value = random(HEADS, sum(pieces), seed), random(HEADS, sum(pieces), seed + 1)
    score = random(HEADS, sum(pieces), seed + 2)[..., 0]
    small, exact = (
        rule(7, d).allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU)) for d in (Int8Slots, Slots)
    )
    assert isinstance(small, Int8Slots)
    seen = 0
    for piece in pieces:
        cut, place = slice(seen, seen + piece), torch.arange(seen, seen + piece).expand(BATCH, -1)
        write = replace_lowest if piece == 1 else keep_best
        for store in (small, exact):
            write(store, Protection(2, 1), key[:, :, cut], value[:, :, cut], score[..., cut], place)
        seen += piece
    torch.testing.assert_close(small.positions, exact.positions, rtol=0, atol=0)
    torch.testing.assert_close(small.scores, exact.scores, rtol=0, atol=0)
    for held, wanted in zip(small.dense(torch.float32), exact.dense(torch.float32), strict=True):
        torch.testing.assert_close(held, rounded(wanted), rtol=0, atol=0)


@pytest.mark.parametrize("streams", [False, True], ids=["dense", "as they lie"])
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
@settings(max_examples=20)
def test_attention_reads_the_rounded_keys_and_values(streams: bool, pieces: list[int], seed: int) -> None:
    total = sum(pieces)
    query, key, value = random(HEADS * GROUP, total, seed), random(HEADS, total, 1), random(HEADS, total, 2)
    whole = SlotRule(total, 1, 0, score="knorm", is_bounded=False, store_type=Int8Slots)
    layer = SlotAttention(
        KernelCall(Kernel("reference", reference.attend), AttentionForm(0.5), streams=streams), whole
    )
    store = layer.rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU))  # type: ignore[union-attr]
    seen = 0
    for piece in pieces:
        cut = slice(seen, seen + piece)
        place = torch.arange(seen, seen + piece).expand(BATCH, -1)
        visible = torch.empty(seen + 1 if piece == 1 else seen)
        operands = (tensor[:, :, cut] for tensor in (query, key, value))
        out = layer(*operands, *LayerInputs(place, visible), *store)
        # A chunk sees itself unrounded, and what was stored before rounded.
        own = slice(seen, seen + piece if piece > 1 else seen)
        seen += piece
        keys, values = rounded(key[:, :, :seen]), rounded(value[:, :, :seen])
        keys[:, :, own], values[:, :, own] = key[:, :, own], value[:, :, own]
        later = torch.arange(seen) > torch.arange(seen - piece, seen)[:, None]
        bias = torch.zeros(piece, seen).masked_fill(later, float("-inf"))[None, None]
        wanted, _ = reference.attend(query[:, :, cut], keys, values, scale=0.5, bias=bias)
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
