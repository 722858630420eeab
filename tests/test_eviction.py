"""Bounded runs against brute force: which keys are held, and what logits follow from holding them."""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, MixedDecoder, PlainDecoder, PlainLayer, WindowDecoder
from torch import nn

import qfpass
from qfpass import Session
from qfpass.attention.span import Span
from qfpass.store.ring import Ring
from qfpass.store.slots import Slots

VOCABULARY, CONTEXT = 61, 64
SLOTS, RECENT, SINKS, CHUNK = 11, 4, 2, 9
KV_HEADS, HEAD_DIM, WINDOW = 2, 8, 7
SCORES = ("recency", "published")
every_score = pytest.mark.parametrize("score", SCORES)


def text(length: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random ids [batch, length]."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def hand_made_filters(layers: int) -> qfpass.QFilters:
    """A random direction [Hkv, D] for each layer."""
    generator = torch.Generator().manual_seed(5)
    directions = (torch.randn(KV_HEADS, HEAD_DIM, generator=generator) for _ in range(layers))
    return qfpass.QFilters(filters=tuple(F.normalize(d, dim=-1) for d in directions))


@functools.cache
def bounded(kind: str, score: str) -> tuple[Any, Any]:
    """A two-layer model and what it compiles to with `SLOTS` slots."""
    builders: dict[str, Callable[..., nn.Module]] = {
        "plain": PlainDecoder,
        "window": lambda: WindowDecoder(window=WINDOW),
        "mixed": lambda: MixedDecoder(window=WINDOW),
        "gemma3": lambda: FAMILIES["gemma3"](window=WINDOW),
    }
    model = builders[kind]()
    compiled = qfpass.compile(
        model, budget=SLOTS, recent=RECENT, sinks=SINKS, chunk=CHUNK, score=score, backend="eager",
        context_length=CONTEXT, filters=hand_made_filters(2) if score == "published" else None,
    )  # fmt: skip
    return model, compiled


@st.composite
def calls(draw: st.DrawFn) -> list[int]:
    """Ends of calls, single tokens and longer texts mixed: 0, ..., at most `CONTEXT`."""
    lengths = draw(st.lists(st.one_of(st.just(1), st.integers(1, 24)), min_size=2, max_size=12))
    ends = [0]
    for length in lengths:
        ends.append(min(ends[-1] + length, CONTEXT))
    return sorted(set(ends))


def pieces(ends: Sequence[int]) -> list[tuple[int, int]]:
    """The calls cut as the decoder cuts them, at most `CHUNK` tokens each."""
    return [(start, min(start + CHUNK, b)) for a, b in pairwise(ends) for start in range(a, b, CHUNK)]


def read(model: nn.Module, session: Session, ids: torch.Tensor) -> torch.Tensor:
    out = model(ids, past_key_values=session)
    return getattr(out, "logits", out)


def scores_of(key: torch.Tensor, score: str, layer: int) -> torch.Tensor:
    """A score [B, Hkv, S] for each of the keys [B, Hkv, S, D] of a whole text."""
    if score == "recency":
        return torch.arange(key.shape[2]).expand(key.shape[:3]).float()
    return torch.einsum("bhsd,hd->bhs", key, hand_made_filters(2).filters[layer])


def kept(score: torch.Tensor, seen: int) -> torch.Tensor:
    """[B, Hkv, S] bool: all of `seen` tokens ranked anew, sinks and recent ones before all others."""
    place = torch.arange(seen)
    protected = (place < SINKS) | (place >= seen - RECENT)
    rank = score[..., :seen].masked_fill(protected, float("inf"))
    best = rank.topk(min(seen, SLOTS)).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, best, True)


def shown(score: torch.Tensor, cut: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[B, Hkv, S, S] bool: the keys that each query sees, from `score` [B, Hkv, S] of all keys.

    A chunk sees the store as it stood before and itself causally; a single token is stored first, so
    it sees exactly what is held after it.
    """
    total = cut[-1][1]
    place = torch.arange(total)
    seen = torch.zeros(*score.shape, total, dtype=torch.bool)
    for a, b in cut:
        before = kept(score[..., :total], b if b - a == 1 else a)[..., None, :]
        itself = (place >= a) & (place <= place[a:b, None])
        seen[:, :, a:b] = before | itself
    return seen


def check_positions(store: Slots, seen: int) -> None:
    """What holds for any score: no token twice, none of the future, no sink and no recent one lost."""
    filled = min(seen, SLOTS)
    assert (store.positions[..., filled:] == -1).all()
    protected = set(range(min(SINKS, seen))) | set(range(max(0, seen - RECENT), seen))
    for head in store.positions[..., :filled].flatten(0, 1).tolist():
        assert len(set(head)) == filled
        assert set(head) <= set(range(seen))
        assert protected <= set(head)


@pytest.mark.parametrize("kind", ["plain", "gemma3"])
@every_score
@given(ends=calls(), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_the_store_is_bounded_and_keeps_what_is_protected(
    kind: str, score: str, ends: list[int], seed: int
) -> None:
    _, compiled = bounded(kind, score)
    session, ids = compiled.session(), text(ends[-1], seed=seed)
    sizes = set()
    for a, b in pairwise(ends):
        read(compiled, session, ids[:, a:b])
        sizes.add((session.nbytes, session.kv_nbytes))
        assert session.tokens_seen == b
        full = [store for store in session.stores if isinstance(store, Slots)]
        assert len(full) == (2 if kind == "plain" else 1)
        for store in full:
            assert store.keys.shape == store.values.shape == (2, KV_HEADS, SLOTS, HEAD_DIM)
            check_positions(store, b)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("slots", "backend"), [(2, "eager"), (3, "eager"), pytest.param(2, "inductor", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_the_smallest_stores_are_windows_of_as_many_tokens(slots: int, backend: str) -> None:
    smallest = {"budget": slots, "sinks": 0, "recent": 1, "score": "recency", "context_length": CONTEXT}
    windowed = WindowDecoder(window=slots)
    settings: Sequence[tuple[nn.Module, dict[str, Any]]] = [
        (PlainDecoder(), smallest), (windowed, {"context_length": CONTEXT}),
    ]  # fmt: skip
    ids = text(30)
    expected = windowed(ids, torch.arange(30).expand(2, -1))
    for model, chosen in settings:
        compiled = qfpass.compile(model, backend=backend, **chosen)
        torch.testing.assert_close(compiled(ids), expected, atol=1e-4, rtol=1e-4)
        session = compiled.session()
        parts = [read(compiled, session, ids[:, a:b]) for a, b in pairwise((0, 1, 3, 20, 21, 30))]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def reference(
    model: PlainDecoder, ids: torch.Tensor, score: str, cut: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits with full attention under masks that hide evicted keys, and each layer's scores [B, Hkv, S].

    A layer's hidden states are right for every token before the next layer starts, so a whole text goes
    through layer by layer.
    """
    position = torch.arange(ids.shape[1]).expand(len(ids), -1)
    hidden, scores = model.tokens(ids), []
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, PlainLayer)
        query, key, value = layer.heads_of(hidden, position)
        scores.append(scores_of(key, score, index))
        group = query.shape[1] // key.shape[1]
        mask = shown(scores[-1], cut)
        if isinstance(model, MixedDecoder) and index % 2 == 0:
            mask = Span(WINDOW).allows(ids.shape[1], ids.device).expand_as(mask)
        mask = mask.repeat_interleave(group, dim=1)
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        weight = query @ key.transpose(-1, -2) / HEAD_DIM**0.5
        weight = weight.masked_fill(~mask, float("-inf")).softmax(-1)
        hidden = layer.after_attention(hidden, weight @ value)
    return model.head(model.norm(hidden)), scores


@pytest.mark.parametrize("kind", ["plain", "mixed"])
@every_score
@given(ends=calls(), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_kept_keys_and_logits_are_those_of_ranking_everything(
    kind: str, score: str, ends: list[int], seed: int
) -> None:
    model, compiled = bounded(kind, score)
    session, ids = compiled.session(), text(ends[-1], seed=seed)
    expected, scores = reference(model, ids, score, pieces(ends))
    for a, b in pairwise(ends):
        actual = read(compiled, session, ids[:, a:b])
        torch.testing.assert_close(actual, expected[:, a:b], atol=1e-4, rtol=1e-4)
        for store, every in zip(session.stores, scores, strict=True):
            if isinstance(store, Ring):
                continue
            filled = min(b, SLOTS)
            held = store.positions[..., :filled].long()
            best = kept(every, b).nonzero()[:, -1].view(*every.shape[:2], filled)
            torch.testing.assert_close(held.sort(-1).values, best)
            torch.testing.assert_close(store.scores[..., :filled], every.gather(-1, held))


@given(ends=calls(), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_eviction_changes_the_logits_only_once_the_slots_are_full(ends: list[int], seed: int) -> None:
    model, compiled = bounded("plain", "published")
    ids, session = text(ends[-1], seed=seed), compiled.session()
    position = torch.arange(ends[-1]).expand(2, -1)
    with torch.no_grad():
        original = model(ids, position)
    actual = torch.cat([read(compiled, session, ids[:, a:b]) for a, b in pairwise(ends)], dim=1)
    torch.testing.assert_close(actual[:, :SLOTS], original[:, :SLOTS], atol=1e-4, rtol=1e-4)
    if ends[-1] > SLOTS + CHUNK:
        assert not torch.allclose(actual[:, SLOTS + CHUNK :], original[:, SLOTS + CHUNK :], atol=1e-2)


@given(ends=calls(), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_sliding_layers_stay_exact(ends: list[int], seed: int) -> None:
    model, compiled = bounded("window", "recency")
    session, ids = compiled.session(), text(ends[-1], seed=seed)
    position = torch.arange(ends[-1]).expand(2, -1)
    with torch.no_grad():
        expected = model(ids, position)
    sizes = set()
    for a, b in pairwise(ends):
        actual = read(compiled, session, ids[:, a:b])
        torch.testing.assert_close(actual, expected[:, a:b], atol=1e-4, rtol=1e-4)
        sizes.add(session.nbytes)
    assert all(isinstance(store, Ring) for store in session.stores)
    assert {store.keys.shape[2] for store in session.stores} == {WINDOW}
    assert len(sizes) == 1
