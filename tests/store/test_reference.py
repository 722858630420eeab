"""The idea on one page against brute force, and the store that runs against the idea."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.kernels import reference
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.kernel import Kernel
from qfpass.store.kernel_call import KernelCall
from qfpass.store.kv_form import KVForm
from qfpass.store.layer_inputs import LayerInputs
from qfpass.store.reference import BoundedStore
from qfpass.store.slot_attention import SlotAttention
from qfpass.store.slots import Protection, SlotRule, slot_to_replace

BATCH, QUERY_HEADS, KV_HEADS, SIZE, VALUE_SIZE = 2, 4, 2, 8, 6
RECENT, SINKS = 3, 2


def minus_norm(keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The score that is called "knorm"."""
    return -keys.norm(dim=-1)


def tokens(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query [B, Hq, S, D], key [B, Hkv, S, D], value [B, Hkv, S, Dv]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((QUERY_HEADS, SIZE), (KV_HEADS, SIZE), (KV_HEADS, VALUE_SIZE))
    query, key, value = (
        torch.randn(BATCH, heads, length, size, generator=generator) for heads, size in shapes
    )
    return query, key, value


def ends_of(lengths: Sequence[int]) -> list[int]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return ends


cuts = st.lists(st.one_of(st.just(1), st.integers(1, 7)), min_size=1, max_size=9)


@given(lengths=cuts, seed=st.integers(0, 99), slots=st.integers(7, 12))
@settings(max_examples=40)
def test_it_keeps_the_best_of_all_tokens_however_the_text_is_cut(
    lengths: list[int], seed: int, slots: int
) -> None:
    ends, store = ends_of(lengths), BoundedStore(slots, RECENT, SINKS, minus_norm)
    query, key, value = tokens(ends[-1], seed)
    for a, b in pairwise(ends):
        store.read(*(x[:, :, a:b] for x in (query, key, value)))
        place = torch.arange(b)
        rank = minus_norm(key, value, place)[:, :, :b]
        rank = rank.masked_fill((place < SINKS) | (place >= b - RECENT), float("inf"))
        wanted = rank.topk(min(b, slots)).indices.sort().values
        torch.testing.assert_close(store.held[2], wanted)
        torch.testing.assert_close(store.held[0], key.gather(2, wanted[..., None].expand(-1, -1, -1, SIZE)))


@given(lengths=cuts, seed=st.integers(0, 99), slots=st.integers(8, 12))
@settings(max_examples=40)
def test_slot_attention_is_that(lengths: list[int], seed: int, slots: int) -> None:
    ends, store = ends_of(lengths), BoundedStore(slots, RECENT, SINKS, minus_norm)
    kernel_call = KernelCall(Kernel("reference", reference.attend), AttentionForm(SIZE**-0.5))
    rule = SlotRule(slots, RECENT, SINKS, "knorm")
    layer, held = (
        SlotAttention(kernel_call, rule),
        rule.allocate(BATCH, KVForm(KV_HEADS, SIZE, VALUE_SIZE, torch.float32, torch.device("cpu"))),
    )
    text = tokens(ends[-1], seed)
    for a, b in pairwise(ends):
        piece = [x[:, :, a:b] for x in text]
        position = torch.arange(a, b).expand(BATCH, -1)
        slot = slot_to_replace(held.scores, held.positions, Protection(RECENT, SINKS), position)
        inputs = LayerInputs(position, torch.empty(min(slots, b if b - a == 1 else a)), slot=slot)
        actual = layer(*piece, *inputs, *held)
        torch.testing.assert_close(actual, store.read(*piece), atol=1e-5, rtol=1e-5)
