"""Rows that can take tokens back: each is as if alone, whatever the other rows read and take back.

QFPASS_EXAMPLES=1000 runs as many random sequences of calls.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from croppable import CODES, check_same, in_order
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import BUDGETS, CONTEXT, KINDS, ROWS, Twin, model_of
from rows import text

from qfpass.errors import InputError, SessionError

EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "8"))
TAKE_BACK = 3  # the newest tokens that these models never evict
DEEDS = ("join", "join", "leave", "read", "step", "step", "step", "crop", "crop", "fork", "drop")
deeds = st.lists(
    st.tuples(st.sampled_from(DEEDS), st.integers(0, ROWS - 1), st.integers(1, 20), st.integers(1, 7)),
    min_size=10,
    max_size=30,
)


def check_alike(twin: Twin, session: Any) -> None:
    """The state of both, whatever order their slots are in."""
    own = twin.session
    assert (own.row_tokens or (0,), own.columns) == (session.row_tokens or (0,), session.columns)
    if own.tokens_seen:
        assert own.rows == session.rows
        assert torch.equal(own.read_ids.rows()[0], session.read_ids.rows()[0])
        check_same(in_order(session, 0), in_order(own, 0), CODES.get(type(own.stores[0])))


def crop_both(pool: Any, row: int, twin: Twin, tokens: int) -> None:
    """Taken back in both, or refused by both."""
    try:
        twin.session.crop(-tokens)
    except SessionError:
        with pytest.raises(SessionError, match=f"row {row}: {tokens} tokens can't be taken back"):
            pool.crop(row, tokens)
    else:
        pool.crop(row, tokens)
    assert pool.tokens_seen(row) == twin.session.tokens_seen


def run(kind: str, todo: Sequence[tuple[str, int, int, int]]) -> None:
    model = model_of(kind)
    pool, twins, away = model.pool(rows=ROWS), dict[int, Twin](), list[tuple[Any, Twin]]()
    fits, bounded = model.qfpass_decoder.config.overflow != "error", kind != "every key"
    for number, (deed, row, length, chosen) in enumerate(todo):
        if deed == "join" and pool.free:
            if away and chosen % 2:
                session, twin = away.pop()
            else:
                budget, back = BUDGETS[chosen % 3] if bounded else None, TAKE_BACK - chosen % 2
                session, twin = (model.session(budget, back), Twin(model, model.session(budget, back)))
            twins[pool.join(session)] = twin
        elif deed == "step":
            named = [r for r in twins if chosen >> r & 1 and (fits or pool.tokens_seen(r) < CONTEXT)]
            if named:
                ids = text(ROWS, seed=number)[0].tolist()
                for r, own in zip(named, pool.step({r: ids[r] for r in named}), strict=True):
                    twins[r].check(torch.tensor([[ids[r]]]), own[None])
        elif row not in twins:
            continue
        elif deed == "read" and (fits or pool.tokens_seen(row) + length <= CONTEXT):
            ids = text(length, seed=number)
            twins[row].check(ids, pool.read(row, ids[0]))
        elif deed == "crop":
            crop_both(pool, row, twins[row], 1 + chosen % TAKE_BACK)
        elif deed == "leave":
            twin, session = twins.pop(row), pool.leave(row)
            check_alike(twin, session)
            if length % 2 and session.tokens_seen:  # also taken back outside, between two stays
                for each in (twin.session, session):
                    with suppress(SessionError):
                        each.crop(-1)
                check_alike(twin, session)
            away.append((session, twin))
        elif deed == "drop":
            pool.drop(row)
            del twins[row]
        elif deed == "fork" and pool.free:
            twins[pool.fork(row)] = Twin(model, twins[row].session.fork())
    for row, twin in twins.items():
        check_alike(twin, pool.copy(row))
        crop_both(pool, row, twin, 2)
        check_alike(twin, pool.leave(row))


@pytest.mark.parametrize("kind", KINDS)
@given(todo=deeds)
@settings(max_examples=EXAMPLES, deadline=None)
def test_each_row_is_as_if_alone(kind: str, todo: list[tuple[str, int, int, int]]) -> None:
    run(kind, todo)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_several_rows_past_full_stores(kind: str) -> None:
    """Rows step together and take back different numbers of tokens, again and again."""
    model, pool, twins = model_of(kind), model_of(kind).pool(rows=ROWS), []
    for row in range(ROWS):
        pool.join(model.session(take_back=TAKE_BACK))
        twins.append(Twin(model, model.session(take_back=TAKE_BACK)))
        ids = text(9 + 7 * row, seed=row)
        twins[row].check(ids, pool.read(row, ids[0]))
    for number in range(8):
        for step in range(3):
            ids = text(ROWS, seed=10 * number + step)[0].tolist()
            for row, own in enumerate(pool.step(dict(enumerate(ids)))):
                twins[row].check(torch.tensor([[ids[row]]]), own[None])
        for row in range(ROWS):
            crop_both(pool, row, twins[row], (number + row) % 4)
            check_alike(twins[row], pool.copy(row))


def test_what_remains_is_what_reading_the_rest_leaves() -> None:
    model = model_of("rings and slots")
    pool, ids = model.pool(rows=2), text(26, seed=3)[0]
    row, other = pool.join(model.session(take_back=TAKE_BACK)), pool.join()
    pool.read(row, ids[:20])
    for step in range(3):
        pool.step({row: int(ids[20 + step]), other: step})
    pool.crop(row, 2)
    for step in range(2):
        pool.step({other: 5, row: int(ids[24 + step])})
    alone = model.session(take_back=TAKE_BACK)
    for part in (ids[:20], ids[20:21], ids[24:25], ids[25:26]):
        model(part[None], past_key_values=alone)
    check_same(in_order(pool.leave(row), 0), in_order(alone, 0))


def test_what_can_not_be_taken_back_is_refused_with_the_row() -> None:
    model = model_of("a layer with every key")
    pool = model.pool(rows=2)
    plain, kept = pool.join(), pool.join(model.session(take_back=2))
    for row in (plain, kept):
        pool.read(row, text(9))
    with pytest.raises(SessionError, match=r"row 0: 1 tokens can't be taken back.*take_back=1"):
        pool.crop(plain, 1)
    with pytest.raises(SessionError, match="row 1: 3 tokens can't be taken back, only the newest 2"):
        pool.crop(kept, 3)
    for wrong in (-1, True, 1.5):
        with pytest.raises(InputError, match="row 1: the tokens to take back"):
            pool.crop(kept, wrong)
    pool.crop(kept, 0)
    assert (pool.tokens_seen(plain), pool.tokens_seen(kept)) == (9, 9)
    pool.drop(plain)
    with pytest.raises(SessionError, match="row 0: no conversation is in this row"):
        pool.crop(plain, 0)
