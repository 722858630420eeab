"""The ring of a sliding layer against windowed attention over the whole text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.kernels import reference
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.kernel import Kernel
from qfpass.store.kernel_call import KernelCall
from qfpass.store.kv_form import KVForm
from qfpass.store.layer_inputs import LayerInputs
from qfpass.store.ring import RingRule
from qfpass.store.ring_attention import RingAttention

BATCH, HEADS, GROUP, DIM = 2, 2, 3, 4
SCALE = 0.6


def windowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int) -> torch.Tensor:
    """Eager attention of each query over the `window` tokens that end with its own."""
    key, value = key.repeat_interleave(GROUP, 1), value.repeat_interleave(GROUP, 1)
    place = torch.arange(query.shape[2])
    distance = place[:, None] - place
    hidden = (distance < 0) | (distance >= window)
    logits = (query @ key.transpose(-1, -2) * SCALE).masked_fill(hidden, float("-inf"))
    return logits.softmax(-1) @ value


def read_in_pieces(pieces: list[int], window: int, seed: int, restart: bool = False) -> None:
    """Reads a text cut into `pieces` and compares; with `restart` the ring has read another first."""
    total = sum(pieces)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(BATCH, HEADS * GROUP, total, DIM, generator=generator)
    key = torch.randn(BATCH, HEADS, total, DIM, generator=generator)
    value = torch.randn(BATCH, HEADS, total, DIM + 1, generator=generator)
    rule = RingRule(window)
    layer = RingAttention(KernelCall(Kernel("reference", reference.attend), AttentionForm(SCALE)), rule)
    store = rule.allocate(BATCH, KVForm(HEADS, DIM, DIM + 1, torch.float32, torch.device("cpu")))
    if restart:
        for tensor in store:
            tensor.fill_(7.0)
        rule.clear(store)
    outs, seen = [], 0
    for piece in pieces:
        new = (t[:, :, seen : seen + piece] for t in (query, key, value))
        position = torch.arange(seen, seen + piece).expand(BATCH, -1)
        # A ring holds at most its window; more tokens seen than that must not matter.
        visible = torch.empty(seen + 1 if piece == 1 else seen)
        outs.append(layer(*new, *LayerInputs(position, visible), *store))
        seen += piece
    wanted = windowed(query, key, value, window)
    torch.testing.assert_close(torch.cat(outs, dim=2), wanted, atol=1e-5, rtol=1e-5)


@given(
    pieces=st.lists(st.integers(1, 14), min_size=1, max_size=8),
    window=st.integers(1, 10),
    seed=st.integers(0, 999),
    restart=st.booleans(),
)
@settings(max_examples=50)
def test_any_cut_equals_windowed_attention(pieces: list[int], window: int, seed: int, restart: bool) -> None:
    read_in_pieces(pieces, window, seed, restart)


@pytest.mark.parametrize(
    "pieces",
    [[20], [3, 20, 2], [2, 2, 2, 2], [1] * 17, [5, 1, 1, 5, 13]],
    ids=["one long", "long amid short", "short", "steps", "mixed"],
)
def test_chunks_longer_and_shorter_than_the_window(pieces: list[int]) -> None:
    read_in_pieces(pieces, window=5, seed=0)


def test_memory_is_the_window() -> None:
    store = RingRule(6).allocate(1, KVForm(2, 4, 3, torch.bfloat16, torch.device("cpu")))
    assert store.keys.shape == (1, 2, 6, 4)
    assert store.values.shape == (1, 2, 6, 3)
    assert store.keys.dtype == torch.bfloat16
