"""A pool: each row gives and keeps what a session alone does, whatever the other rows do.

QFPASS_EXAMPLES=1000 runs as many random sequences of calls.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import BUDGETS, CONTEXT, KINDS, ROWS, Twin, model_of, read_texts
from rows import text

from qfpass import Session

EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "8"))
each_kind = pytest.mark.parametrize("kind", KINDS)


DEEDS = ("join", "join", "leave", "read", "read", "step", "step", "step", "step", "fork", "drop")
deeds = st.lists(
    st.tuples(st.sampled_from(DEEDS), st.integers(0, ROWS - 1), st.integers(1, 40), st.integers(1, 7)),
    min_size=8,
    max_size=30,
)


def run(kind: str, todo: Sequence[tuple[str, int, int, int]]) -> None:
    model = model_of(kind)
    pool, twins, away = model.pool(rows=ROWS), dict[int, Twin](), list[tuple[Session, Twin]]()
    bounded = kind != "every key"
    for number, (deed, row, length, chosen) in enumerate(todo):
        assert pool.free == tuple(r for r in range(ROWS) if r not in twins)
        fits = model.qfpass_decoder.config.overflow != "error"
        if deed == "join" and pool.free:
            if away and chosen % 2:
                session, twin = away.pop()
            else:
                budget = BUDGETS[chosen % 3] if bounded else None
                session, twin = model.session(budget), Twin(model, model.session(budget))
                if chosen % 5 == 0:
                    ids = text(length, seed=number)
                    for each in (session, twin.session):
                        model(ids, past_key_values=each)
            twins[pool.join(session)] = twin
        elif deed == "step":
            named = [r for r in twins if chosen >> r & 1 and (fits or pool.tokens_seen(r) < CONTEXT)]
            if named:
                ids = text(ROWS, seed=number)[0].tolist()
                logits = pool.step({r: ids[r] for r in named})
                assert logits.shape[0] == len(named)
                for r, own in zip(named, logits, strict=True):
                    twins[r].check(torch.tensor([[ids[r]]]), own[None])
        elif row in twins and deed == "read" and (fits or pool.tokens_seen(row) + length <= CONTEXT):
            ids = text(length, seed=number)
            twins[row].check(ids, pool.read(row, ids[0], logits_to_keep=min(length, chosen)))
        elif row in twins and deed in ("leave", "drop"):
            twin = twins.pop(row)
            if deed == "leave":
                session = pool.leave(row)
                twin.check_state(session)
                away.append((session, twin))
            else:
                pool.drop(row)
        elif row in twins and deed == "fork" and pool.free:
            twins[pool.fork(row)] = Twin(model, twins[row].session.fork())
    for row, twin in twins.items():
        twin.check_state(pool.leave(row))
    for session, twin in away:
        twin.check_state(session)


@each_kind
@given(todo=deeds)
@settings(max_examples=EXAMPLES, deadline=None)
def test_each_row_is_as_if_alone(kind: str, todo: list[tuple[str, int, int, int]]) -> None:
    run(kind, todo)


def test_a_row_leaves_as_a_session_that_forks_saves_and_joins_again(tmp_path: Path) -> None:
    model = model_of("rings and slots")
    pool, more = model.pool(rows=2), text(9, seed=9)
    (twin,) = read_texts(model, pool, [30])
    copy, session = pool.copy(0), pool.leave(0)
    nbytes, wanted = pool.nbytes, model(more, past_key_values=twin.session).logits
    fork = session.fork()
    session.save(tmp_path / "row")
    loaded = model.session().load(tmp_path / "row")
    rows = [pool.join(fork), pool.join(loaded)]
    for each in (fork, loaded, session, copy):  # they are sessions of their own
        torch.testing.assert_close(model(more, past_key_values=each).logits, wanted, atol=1e-5, rtol=1e-5)
    for row in rows:
        torch.testing.assert_close(pool.read(row, more, 0), wanted[0], atol=1e-5, rtol=1e-5)
    assert pool.nbytes == nbytes == 2 * session.nbytes
