"""Calls of a pool that come between others, are cancelled or refused; and what warming up compiles."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from pools import CONTEXT, ROWS, Twin, model_of, read_texts
from rows import text
from tiny import FAMILIES

import qfpass
from qfpass import QFPassError
from qfpass.errors import CancelledError, SessionError


def between_chunks(pool: Any, row: int, work: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call work(0), work(1), ... before the first chunk of the row's next prompt, before the second, ..."""
    session, chunks = pool._rows.session(row), itertools.count()
    refuse = session.refuse_if_cancelled

    def work_and_refuse() -> None:
        work(next(chunks))
        refuse()

    monkeypatch.setattr(session, "refuse_if_cancelled", work_and_refuse)


@pytest.mark.parametrize("first", [0, 20])
def test_steps_between_the_chunks_of_a_prompt(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 has read a part of its prompt, which they don't change."""
    model = model_of("rings and slots")
    pool = model.pool(rows=ROWS)
    twins, prompt = read_texts(model, pool, [first or 1, 3, 40]), text(33, seed=7)
    if not first:
        pool.drop(0)
        twins[0] = Twin(model, model.session())
        pool.join()

    def step(chunk: int) -> None:
        tokens = {2: 5 + chunk, 1: 9 + chunk}
        for (row, token), own in zip(tokens.items(), pool.step(tokens), strict=True):
            twins[row].check(torch.tensor([[token]]), own[None])

    between_chunks(pool, 0, step, monkeypatch)
    twins[0].check(prompt, pool.read(0, prompt, 0))
    for row, twin in enumerate(twins):
        twin.check_state(pool.leave(row))


@pytest.mark.parametrize("first", [0, 20])
def test_a_prompt_is_cancelled_between_chunks(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row then stands where it stood, and another that has stepped meanwhile where it stands."""
    model = model_of("rings and slots")
    pool = model.pool(rows=ROWS)
    twins = read_texts(model, pool, [3, 40])
    row, twin = pool.join(), Twin(model, model.session())
    if first:
        twin.check(text(first), pool.read(row, text(first)))

    def step_and_cancel(chunk: int) -> None:
        logits = pool.step({0: 5, 1: 9})
        for each, token, own in zip(twins, (5, 9), logits, strict=True):
            each.check(torch.tensor([[token]]), own[None])
        if chunk == 2:
            assert pool.cancel(row)

    between_chunks(pool, row, step_and_cancel, monkeypatch)
    with pytest.raises(CancelledError, match="row 2: the call was cancelled"):
        pool.read(row, text(33, seed=7))
    monkeypatch.undo()
    assert not pool.cancel(row)
    twins.append(twin)
    for each, own, token in zip(twins, pool.step({0: 1, 1: 2, 2: 3}), (1, 2, 3), strict=True):
        each.check(torch.tensor([[token]]), own[None])
    for number, each in enumerate(twins):
        each.check_state(pool.leave(number))


def test_what_a_step_or_a_row_can_not_be_is_refused() -> None:
    model, other = model_of("a layer with every key"), model_of("rings and slots")
    pool = model.pool(rows=2)
    read_texts(model, pool, [CONTEXT, 30])
    many = model.session()
    model(torch.ones(2, 3, dtype=torch.long), past_key_values=many)
    before = [pool.tokens_seen(row) for row in (0, 1)]
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("all 2 rows are in use", pool.join),
        ("row 1: all 2 rows are in use", lambda: pool.fork(1)),
        ("belongs to another compiled model", lambda: pool.join(other.session())),
        ("not a session of this model", lambda: pool.join(torch.ones(1))),
        ("holds 2 rows, but a pool's row holds one", lambda: pool.join(many)),
        ("row 0: 70 tokens seen and 1 new ones exceed", lambda: pool.step({1: 5, 0: 5})),
        ("row 0: 70 tokens seen and 2 new ones exceed", lambda: pool.read(0, [5, 6])),
        ("row 1: there is no token 61: .* 0 to 60", lambda: pool.step({0: 5, 1: 61})),
        ("row 1: there is no token -1", lambda: pool.step({1: -1})),
        ("row 1: a step reads one token id, not 1.5", lambda: pool.step({1: 1.5})),
        ("names no row", lambda: pool.step({})),
        ("there is no row 2: this pool has rows 0 to 1", lambda: pool.step({2: 5})),
        ("there is no row -1", lambda: pool.leave(-1)),
        ("row 1: input_ids go from 61 to 61", lambda: pool.read(1, [61])),
        ("row 1: the prompt is empty", lambda: pool.read(1, [])),
        ("row 1: a row reads one text", lambda: pool.read(1, torch.ones(2, 2, dtype=torch.long))),
        ("row 1: input_ids must be integers", lambda: pool.read(1, torch.ones(2))),
        ("row 1: logits_to_keep", lambda: pool.read(1, [5], -1)),
        ("warming up needs two free rows", pool.warm_up),
        ("a pool's rows must be a whole number", lambda: model.pool(0)),
    ]
    for message, call in refused:
        with pytest.raises(QFPassError, match=message):
            call()
    assert [pool.tokens_seen(row) for row in (0, 1)] == before
    pool.drop(1)
    for call in (lambda: pool.step({1: 5, 0: 5}), lambda: pool.leave(1), lambda: pool.tokens_seen(1)):
        with pytest.raises(SessionError, match="row 1: no conversation is in this row"):
            call()


def test_a_row_that_another_thread_uses_is_refused_and_not_waited_for() -> None:
    model = model_of("rings and slots")
    pool = model.pool(rows=2)
    read_texts(model, pool, [5, 30])
    with pool._rows.held(1), ThreadPoolExecutor(1) as threads:
        for call in (lambda: pool.step({0: 5, 1: 5}), lambda: pool.leave(1), lambda: pool.drop(1)):
            with pytest.raises(SessionError, match="row 1: the session is in use by another thread"):
                threads.submit(call).result()
        assert threads.submit(pool.step, {0: 5}).result().shape == (1, 61)


def test_a_pool_belongs_to_the_model_as_it_was() -> None:
    original = FAMILIES["llama"]()
    model: Any = qfpass.compile(original, budget=12, score="random", backend="eager", chunk=8)
    pool = model.pool(rows=2)
    pool.join()
    hook = original.model.layers[0].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(SessionError, match="changed since this pool was made"):
        pool.read(0, [5, 6])
    hook.remove()
    assert pool.read(0, [5, 6]).shape == (1, 61)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_warming_up(backend: str) -> None:
    """Joins, budgets, prompts of any length, steps of any rows before and after stores are full, recorded or
    not; and what Inductor's code says is what a session alone is told."""
    model: Any = qfpass.compile(
        FAMILIES["gemma3"](window=5), budget=12, chunk=8, score="random", backend=backend,
        context_length=CONTEXT, verify=False,
    )  # fmt: skip
    pool, budgets = model.pool(rows=4), (8, None, 8, None)
    pool.warm_up()
    assert pool.free == (0, 1, 2, 3)
    warm = qfpass.report(model).graphs_compiled
    assert warm > 0
    told = list[tuple[int, list[int], torch.Tensor]]()

    def step(named: dict[int, int]) -> None:
        told.extend((row, [named[row]], own) for row, own in zip(named, pool.step(named), strict=True))

    for row, length in enumerate((1, 2, 9, 40)):
        pool.join(model.session(budgets[row]))
        told.append((row, text(length)[0].tolist(), pool.read(row, text(length))[0]))
        step(dict.fromkeys(range(row + 1), 5))
    for named in (
        {0: 1, 3: 1},
        {2: 1},
        *[dict.fromkeys(range(4), 7)] * 12,
        *[{1: 1, 3: 2}, {0: 1, 2: 2}] * 3,
    ):
        step(named)
    pool.leave(1)
    pool.drop(0)
    pool.join()
    pool.read(0, text(17), 0)
    pool.step({3: 1, 0: 2})
    assert qfpass.report(model).graphs_compiled == warm
    alone = [model.session(budget) for budget in budgets]
    for row, ids, logits in told:
        wanted = model(torch.tensor([ids]), past_key_values=alone[row], logits_to_keep=1).logits[0, 0]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
