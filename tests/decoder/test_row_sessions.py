"""A step of several rows is one call, where model and filters allow; one that fails changes no row."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bounded import Interrupt, compiled, failing_attentions, run_plainly
from decoders import Decoder, causal
from rows import text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass import TrainedFilters
from qfpass.errors import SessionError

CONTEXT = 40


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Rings and slots; the graphs run as plain Python, so that any part can fail."""
    return run_plainly(
        qfpass.compile(
            FAMILIES["gemma3"](window=7, layers=4), budget=16, chunk=8, recent=3, score="random",
            backend="eager", context_length=CONTEXT, overflow="rerotate", verify=False,
        )
    )  # fmt: skip


@pytest.fixture
def failing(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """failing(n) lets the n-th attention from now fail, after it has written."""
    with failing_attentions(model) as fail:
        yield fail


def contents(pool: Any) -> list[torch.Tensor]:
    return [tensor.clone() for store in pool._rows.stores for tensor in store]


def test_a_step_that_fails_changes_no_row(model: Any, failing: Callable[[int], None]) -> None:
    """Row 0 has read nothing, row 1 must first move its keys, row 2 rests, row 3 is short."""
    pool = model.pool(rows=4)
    for row, length in enumerate((0, CONTEXT, 30, 5)):
        pool.join(model.session(None if row % 2 else 9))
        if length:
            pool.read(row, text(length, seed=row))
    pool.read(1, text(1))  # moves its keys, whose scores are now those of moved keys
    pool.read(1, text(CONTEXT - 17, seed=7))
    before, states = contents(pool), [pool._rows.session(row).state for row in range(4)]
    tokens = {1: 5, 0: 6, 3: 7}
    for attention in range(1, 5):
        failing(attention)
        with pytest.raises(Interrupt):
            pool.step(tokens)
        assert all(map(torch.equal, contents(pool), before))
        assert [pool._rows.session(row).state for row in range(4)] == states
    twins = [model.pool(rows=1) for _ in range(4)]
    for row, twin in enumerate(twins):
        twin.join(pool.leave(pool.fork(row)) if pool.free else pool._rows.session(row))
    for (row, token), own in zip(tokens.items(), pool.step(tokens), strict=True):
        torch.testing.assert_close(own[None], twins[row].step({0: token}), atol=1e-5, rtol=1e-5)


def test_a_row_whose_undoing_was_interrupted_can_only_be_dropped(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = model.pool(rows=3)
    for row in range(3):
        pool.join()
        pool.read(row, text(30, seed=row))

    def interrupt(*_: Any) -> None:
        raise Interrupt

    monkeypatch.setattr(model.qfpass_decoder, "chunk", interrupt)
    monkeypatch.setattr("qfpass.sessions.stores.Stores.copy_", interrupt)
    with pytest.raises(Interrupt):
        pool.read(0, text(3))
    monkeypatch.undo()
    alone = model.session()
    model(text(30, seed=1), past_key_values=alone)
    with pytest.raises(SessionError, match=r"row 0: .* was interrupted"):
        pool.step({0: 1, 1: 1})
    wanted = model(text(1), past_key_values=alone).logits[0]
    torch.testing.assert_close(pool.step({1: int(text(1)), 2: 1})[:1], wanted, atol=1e-5, rtol=1e-5)
    pool.drop(0)
    assert pool.join() == 0


def test_rows_whose_filters_depend_on_their_budgets() -> None:
    """The trained score's do: one call for each budget, one of them with a row by itself."""
    torch.manual_seed(0)
    filters = TrainedFilters(tuple(torch.randn(2, 34) for _ in range(2)), (1.25, 0.75), {})
    model: Any = run_plainly(
        qfpass.compile(
            FAMILIES["llama"](), budget=16, chunk=4, recent=3, sinks=2, filters=filters, score="trained",
            backend="eager", verify=False,
        )
    )  # fmt: skip
    pool = model.pool(rows=5)
    budgets, alone = (None, 9, 16, 9, 12), []
    for row, budget in enumerate(budgets):
        alone.append(model.session(budget))
        pool.join(model.session(budget))
        ids = text(3 + 9 * row, seed=row)
        model(ids, past_key_values=alone[row])
        pool.read(row, ids)
    for step in range(20):
        named = [row for row in (3, 0, 4, 1, 2) if (row + step) % 4]
        ids = text(5, seed=step)
        logits = pool.step({row: ids[0, row] for row in named})
        for row, own in zip(named, logits, strict=True):
            wanted = model(ids[:, row : row + 1], past_key_values=alone[row]).logits[0]
            torch.testing.assert_close(own[None], wanted, atol=1e-4, rtol=1e-4)
    for row, session in enumerate(alone):
        left = pool.leave(row)
        for actual, wanted in zip(left.stores, session.stores, strict=True):
            torch.testing.assert_close(tuple(actual), tuple(wanted), atol=1e-4, rtol=1e-4)


class Lengthened(Decoder):
    """Doubles its hidden values once any position of the call is past 24."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = self.tokens(input_ids) + self.places(position_ids)
        hidden = hidden * torch.where(position_ids.max() >= 24, 2.0, 1.0)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden))


def test_rows_of_a_model_that_follows_the_length_of_a_text() -> None:
    """A short row doesn't see how long another is."""
    torch.manual_seed(0)
    model: Any = run_plainly(compiled(Lengthened(causal).eval(), budget=32))
    pool, alone = model.pool(rows=3), [model.session() for _ in range(2)]
    for row, length in enumerate((5, 30)):
        pool.join()
        pool.read(row, text(length, seed=row) % 53)
        model(text(length, seed=row) % 53, past_key_values=alone[row])
    assert model.qfpass_decoder.graphs.follows_length
    for step in range(3):
        logits = pool.step({1: 5 + step, 0: 9 + step})
        for row, token, own in ((1, 5 + step, logits[0]), (0, 9 + step, logits[1])):
            wanted = model(torch.tensor([[token]]), past_key_values=alone[row])[0]
            torch.testing.assert_close(own[None], wanted, atol=1e-5, rtol=1e-5)


def test_other_models_step_their_rows_in_one_call(model: Any) -> None:
    assert not model.qfpass_decoder.graphs.follows_length
    pool = model.pool(rows=3)
    for row in range(3):
        pool.join(model.session((None, 9)[row % 2]))
        pool.read(row, text(10 * row + 5))
    step, calls = model.qfpass_decoder.graphs.step, list[int]()
    model.qfpass_decoder.graphs.step = lambda ids, *rest: (calls.append(len(ids)), step(ids, *rest))[1]
    try:
        pool.step({0: 5, 2: 6, 1: 7})
        pool.step({2: 5})
    finally:
        model.qfpass_decoder.graphs.step = step
    assert calls == [3, 1]
