"""Pinned tokens stay, whatever is read after them; the rest of a store is what it would be beside them."""

from pathlib import Path

import pytest
import torch
from bounded import CONTEXT, compiled, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qfpass import Session
from qfpass.errors import SessionError

SLOTS, SINKS, RECENT = 16, 4, 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return compiled(llama(), recent=RECENT)


def text(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(1, 53, (rows, length), generator=torch.Generator().manual_seed(0))


def held(session: Session, row: int = 0) -> list[set[int]]:
    """The positions that each head of each layer holds in a row."""
    return [
        {int(p) for p in head if p >= 0}
        for layer in (0, 1)
        for head in session.positions(layer)[row].tolist()
    ]


@given(start=st.integers(0, 6), length=st.integers(1, 7), pieces=st.lists(st.integers(1, 8), max_size=5))
@settings(max_examples=30)
def test_what_is_pinned_stays(model: nn.Module, start: int, length: int, pieces: list[int]) -> None:
    session, ids = model.session(), text(CONTEXT)
    model(ids[:, :14], past_key_values=session)
    session.pin(start, start + length)
    seen = 14
    for piece in pieces:
        model(ids[:, seen : seen + piece], past_key_values=session)
        seen = min(CONTEXT, seen + piece)
    kept = {*range(SINKS), *range(start, start + length)}
    for p in reversed(range(seen)):  # the newest beside them, since the score is recency
        if len(kept) < SLOTS:
            kept.add(p)
    assert held(session) == [kept if seen > SLOTS else set(range(seen))] * 4


def test_a_row_is_pinned_by_itself_and_pins_are_forked_and_saved(model: nn.Module, tmp_path: Path) -> None:
    session, ids = model.session(), text(40, rows=2)
    model(ids[:, :10], past_key_values=session)
    session.pin(4, 9, row=1)
    fork = session.fork()
    session.save(tmp_path / "session")
    loaded = model.session().load(tmp_path / "session")
    for each in (session, fork, loaded):
        model(ids[:, 10:], past_key_values=each)
        assert all(set(range(4, 9)) <= positions for positions in held(each, row=1))
        assert all(not set(range(4, 9)) & positions for positions in held(each, row=0))
    session.reset()
    model(ids, past_key_values=session)
    assert all(not set(range(4, 9)) & positions for positions in held(session, row=1))


def test_moved_keys_stay_pinned() -> None:
    model = compiled(llama(), recent=RECENT, overflow="rerotate", context_length=40)
    session, ids = model.session(), text(100)
    model(ids[:, :10], past_key_values=session)
    session.pin(4, 9)
    first = session.stores[0].values[0, 0, session.positions(0)[0, 0] == 5].clone()
    model(ids[:, 10:], past_key_values=session)
    assert any(torch.equal(value, first[0]) for value in session.stores[0].values[0, 0])


@pytest.mark.parametrize(
    ("start", "stop", "reason"),
    [
        (0, 12, "don't fit in 16 slots"),
        (5, 13, "don't fit in 16 slots beside the first 4 and the newest 4"),
        (3, 3, "read them first"),
        (-1, 3, "read them first"),
        (10, 21, "since only 14 tokens have been read"),
    ],
)
def test_refused_with_numbers(model: nn.Module, start: int, stop: int, reason: str) -> None:
    session = model.session()
    model(text(14), past_key_values=session)
    before = [t.clone() for store in session.stores for t in store]
    with pytest.raises(SessionError, match=reason):
        session.pin(start, stop)
    assert all(map(torch.equal, before, [t for store in session.stores for t in store]))


def test_what_is_evicted_already_is_refused(model: nn.Module) -> None:
    session = model.session()
    with pytest.raises(SessionError, match="read them first"):
        session.pin(0, 3)
    model(text(30), past_key_values=session)
    with pytest.raises(SessionError, match=r"5 of the tokens at positions 5 to 9 are no longer held"):
        session.pin(5, 10)
