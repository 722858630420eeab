"""Bounded runs with trained filters, whose layers have different numbers of slots, against brute force."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import graphs_of_one_batch
from decoders import HEAD_DIM, KV_HEADS, Decoder, decoder, places, text
from hypothesis import given, settings
from hypothesis import strategies as st

import qfpass
from qfpass.errors import ConfigError, FilterFileError, FilterMismatchError, SessionError
from qfpass.filters import TrainedFilters, load_filters
from qfpass.filters.trained_filters import EXTRA_WEIGHTS
from qfpass.layer_rules import shares_within
from qfpass.store.scores import trained

SLOTS, RECENT, SINKS, CONTEXT = 20, 4, 2, 80
SHARES = (0.5, 1.5, 1.0)
ENDS = (0, 11, 12, 13, 40, 41, 60)
LAYER_SLOTS = (13, 27, 20)  # 6 protected ones and 14 * share


def filters(seed: int = 0) -> TrainedFilters:
    """Random filters of three layers; an old key loses about what two scores differ by."""
    generator = torch.Generator().manual_seed(seed)
    width = KV_HEADS * 2 * HEAD_DIM
    each = [torch.randn(KV_HEADS, width + EXTRA_WEIGHTS, generator=generator) for _ in SHARES]
    return TrainedFilters(tuple(each), SHARES)


def compiled(model: Decoder, backend: str = "eager", **settings: Any) -> Any:
    chosen = {"budget": SLOTS, "recent": RECENT, "sinks": SINKS, "context_length": CONTEXT}
    return qfpass.compile(model, backend=backend, **{"filters": filters(), **chosen, **settings})


def kept(score: torch.Tensor, seen: int, slots: int) -> torch.Tensor:
    """The positions [B, Hkv, slots], sorted, that ranking all of `seen` tokens anew keeps."""
    place = torch.arange(seen)
    protected = (place < SINKS) | (place >= seen - RECENT)
    rank = score[..., :seen].masked_fill(protected, float("inf"))
    return rank.topk(min(seen, slots)).indices.sort(-1).values


class _FirstLayer(torch.nn.Module):
    """Notes the keys and values of a decoder's first layer, which no eviction changes."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.model.layers[0]
        normed = layer.norm(self.model.tokens(ids) + self.model.places(places(ids)))
        return tuple(
            part(normed).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in (layer.key, layer.value)
        )


MODEL = decoder(layers=3)
COMPILED = compiled(MODEL)


@given(cuts=st.lists(st.integers(1, 60), min_size=0, max_size=5, unique=True), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_every_layer_keeps_its_share_of_the_best(cuts: list[int], seed: int) -> None:
    ids, ends = text(60, 2, seed), sorted({0, *cuts, 60})
    session = COMPILED.session()
    for a, b in pairwise(ends):
        COMPILED(ids[:, a:b], past_key_values=session)
    assert tuple(session.positions(layer).shape[-1] for layer in range(3)) == LAYER_SLOTS
    for layer, slots in enumerate(LAYER_SLOTS):
        for head in session.positions(layer).flatten(0, 1).tolist():
            assert len(set(head)) == slots
            assert {*range(SINKS), *range(60 - RECENT, 60)} <= set(head) <= set(range(60))
    key, value = _FirstLayer(MODEL)(ids)
    score = trained(key, value, places(ids), filters().for_slots(SLOTS)[0])
    expected = kept(score, 60, LAYER_SLOTS[0])
    torch.testing.assert_close(session.positions(0).long().sort(-1).values, expected)


@torch.no_grad()
def test_until_anything_is_evicted_nothing_changes() -> None:
    ids = text(min(LAYER_SLOTS), 2)
    for ends in ((0, 13), (0, 5, 6, 13), tuple(range(14))):
        session = COMPILED.session()
        parts = [COMPILED(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
        torch.testing.assert_close(torch.cat(parts, 1), MODEL(ids, places(ids)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_lowered_by_inductor_it_is_the_same_from_a_few_graphs() -> None:
    lowered, ids = compiled(MODEL, "inductor"), text(60, 2)
    outputs = []
    for model in (lowered, COMPILED):
        session = model.session()
        parts = [
            model(ids[:, a:b], past_key_values=session) for a, b in pairwise((0, 11, 12, 13, 40, 41, 60))
        ]
        outputs.append(torch.cat(parts, 1))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    report = qfpass.report(lowered)
    assert (report.graphs_compiled, report.region_kinds) == (graphs_of_one_batch(lowered), 3)
    assert tuple(site.slots for site in report.sites) == LAYER_SLOTS


@torch.no_grad()
def test_a_sessions_budget_is_shared_out_alike() -> None:
    ids = text(60)
    small, smaller = compiled(MODEL, budget=16, chunk=5), compiled(MODEL, chunk=5)
    first, second = small.session(), smaller.session(budget=16)
    expected = small(ids, past_key_values=first)
    torch.testing.assert_close(smaller(ids, past_key_values=second), expected, rtol=1e-5, atol=1e-5)
    for layer in range(3):
        held = first.positions(layer)
        torch.testing.assert_close(second.positions(layer)[..., : held.shape[-1]], held)


def test_the_score_is_a_projection_the_values_norm_and_the_position() -> None:
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(1, 2, 5, size, generator=generator) for size in (4, 6))
    position, weights = torch.arange(10, 15)[None], torch.randn(2, 22, generator=generator)
    score = trained(key, value, position, weights)
    for head in range(2):
        for token in range(5):
            both = torch.cat([key[0, 0, token], value[0, 0, token], key[0, 1, token], value[0, 1, token]])
            expected = both @ weights[head, :20] + weights[head, 20] * value[0, head, token].norm().log()
            expected = expected + weights[head, 21] * (10 + token)
            torch.testing.assert_close(score[0, head, token], expected)


@given(weights=st.lists(st.floats(0.1, 8), min_size=2, max_size=12), largest=st.floats(1.05, 6))
def test_slots_that_a_layer_cannot_fill_go_to_others(weights: list[float], largest: float) -> None:
    shares = [weight * len(weights) / sum(weights) for weight in weights]
    spread = shares_within(shares, largest)
    assert max(spread) <= largest * (1 + 1e-6)
    assert abs(sum(spread) / len(spread) - 1) < 1e-6
    for before, after in zip(shares, spread, strict=True):
        assert after >= min(before, largest) * (1 - 1e-9)
    if max(shares) <= largest:
        assert list(spread) == shares


def test_filters_in_files(tmp_path: Path) -> None:
    filters().save(tmp_path)
    loaded = load_filters(tmp_path)
    assert isinstance(loaded, TrainedFilters) and loaded.shares == SHARES
    torch.testing.assert_close(loaded.filters, filters().filters, rtol=0, atol=0)
    with pytest.raises(FilterFileError, match="shares"):
        qfpass.QFilters.load(tmp_path)


def test_refused() -> None:
    other = TrainedFilters(filters().filters[:2], (0.5, 1.5))
    for call, error, message in (
        (lambda: qfpass.compile(MODEL, budget=SLOTS, score="trained"), ConfigError, "qfpass.tune"),
        (lambda: compiled(MODEL, score="published"), ConfigError, "'trained' score"),
        (lambda: compiled(MODEL, overflow="rerotate"), ConfigError, "all heads at a token"),
        (lambda: compiled(MODEL, filters=other), FilterMismatchError, "another shape"),
        (lambda: compiled(MODEL, budget=8, recent=5), ConfigError, "in the layer that has fewest"),
        (lambda: COMPILED.session(budget=21), SessionError, "compiled with 20"),
        (lambda: TrainedFilters(filters().filters, (1.0, 1.0, 2.0)), ConfigError, "1 on average"),
    ):
        with pytest.raises(error, match=message):
            call()
