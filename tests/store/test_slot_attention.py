"""A bounded layer with room for all keys against plain attention, its logits biased or beside a sink."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.kernels import reference
from qfpass.kernels.distance_bias import DistanceBias
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.kernel import Kernel
from qfpass.store.kernel_call import KernelCall
from qfpass.store.kv_form import KVForm
from qfpass.store.layer_inputs import LayerInputs
from qfpass.store.slot_attention import SlotAttention
from qfpass.store.slots import SlotRule

BATCH, HEADS, GROUP, DIM, SCALE = 2, 3, 2, 4, 0.5
SLOPES = (0.5, 0.25, 0.125, 0.1, 0.05, 0.0)
SINK = torch.linspace(-1, 2, HEADS * GROUP)


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slopes: tuple[float, ...] | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Causal attention in eager float32, written out."""
    key, value = key.repeat_interleave(GROUP, dim=1), value.repeat_interleave(GROUP, dim=1)
    place = torch.arange(query.shape[2])
    distance = place - place[:, None]
    logits = query @ key.transpose(2, 3) * SCALE
    if slopes is not None:
        logits = logits + torch.tensor(slopes)[:, None, None] * distance
    logits = logits.masked_fill(distance > 0, float("-inf"))
    if sink is None:
        return logits.softmax(-1) @ value
    beside = torch.cat([logits, sink[:, None, None].expand(BATCH, -1, len(place), 1)], dim=-1)
    return beside.softmax(-1)[..., :-1] @ value


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "slopes"])
@pytest.mark.parametrize("sink", [None, SINK], ids=["no sink", "sink"])
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
@settings(max_examples=15)
def test_with_room_for_all_it_is_causal_attention(
    slopes: tuple[float, ...] | None, sink: torch.Tensor | None, pieces: list[int], seed: int
) -> None:
    total, generator = sum(pieces), torch.Generator().manual_seed(seed)
    rule = SlotRule(total, recent=1, sinks=0, score="recency", is_bounded=False)
    layer = SlotAttention(
        KernelCall(
            Kernel("reference", reference.attend), AttentionForm(SCALE, bias=slopes and DistanceBias(slopes))
        ),
        rule,
    )
    query, key, value = (
        torch.randn(BATCH, heads, total, DIM, generator=generator) for heads in (HEADS * GROUP, HEADS, HEADS)
    )
    store = rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, torch.device("cpu")))
    outs, seen = [], 0
    for piece in pieces:
        new = (t[:, :, seen : seen + piece] for t in (query, key, value))
        position = torch.arange(seen, seen + piece).expand(BATCH, -1)
        visible = torch.empty(seen + 1 if piece == 1 else seen)
        outs.append(layer(*new, *LayerInputs(position, visible, sink=sink), *store))
        seen += piece
    wanted = plain(query, key, value, slopes, sink)
    torch.testing.assert_close(torch.cat(outs, dim=2), wanted, atol=1e-5, rtol=1e-5)


def test_a_token_takes_the_slot_that_it_is_given() -> None:
    """As the first, though another may have a lower score."""
    rule = SlotRule(4, recent=1, sinks=0, score="recency")
    layer = SlotAttention(KernelCall(Kernel("reference", reference.attend), AttentionForm(SCALE)), rule)
    store = rule.allocate(1, KVForm(HEADS, DIM, DIM, torch.float32, torch.device("cpu")))
    for position, slot in ((0, [0, 0, 0]), (1, [1, 1, 1]), (2, [2, 2, 2]), (3, [3, 3, 3]), (4, [2, 3, 0])):
        query, key, value = (torch.full((1, heads, 1, DIM), float(position)) for heads in (6, HEADS, HEADS))
        given = torch.tensor(slot)[None, :, None]
        place, visible = torch.tensor([[position]]), torch.empty(min(position + 1, 4))
        layer(query, key, value, *LayerInputs(place, visible, slot=given), *store)
    assert store.positions[0].tolist() == [[0, 1, 4, 3], [0, 1, 2, 4], [4, 1, 2, 3]]
    assert torch.equal(store.keys[0, :, :, 0], store.positions[0].float())
