"""A call that fails leaves its session as it was, whatever fails and wherever."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bounded import Interrupt, failing_attentions, run_plainly
from rows import ROWS, SETTINGS, padded, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass import Session
from qfpass.errors import InputError, SessionError

Failing = Callable[[int], None]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Sites 0 and 2 are rings, 1 and 3 bounded; its graphs run as plain Python, so that any part can fail."""
    return run_plainly(qfpass.compile(FAMILIES["gemma3"](window=7, layers=4), budget=24, **SETTINGS))


@pytest.fixture
def failing(model: nn.Module) -> Iterator[Failing]:
    """failing(n) lets the n-th attention from now fail, after it has written."""
    with failing_attentions(model) as fail:
        yield fail


def contents(session: Session) -> list[torch.Tensor]:
    return [tensor.clone() for store in session.stores for tensor in store]


CALLS: dict[str, dict[str, torch.Tensor]] = {
    "a step": {"input_ids": torch.cat([text(1, seed=n) for n in range(4)])},
    "a step of some rows": padded([text(n, seed=7) for n in (1, 0, 1, 0)], "right"),
    "rows one by one": padded([text(n, seed=n) for n in (5, 30, 1, 12)], "left"),
    "chunks": {"input_ids": torch.cat([text(35, seed=n) for n in range(4)])},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupt_changes_nothing(
    model: nn.Module, failing: Failing, call: dict[str, torch.Tensor]
) -> None:
    session = model.session()
    model(**padded(ROWS, "left"), past_key_values=session)
    before, state, twin = contents(session), session.state, session.fork()
    for attentions in (1, 2, 3, 4) if call["input_ids"].shape[1] == 1 else (1, 4, 7, 18):
        failing(attentions)
        with pytest.raises(Interrupt):
            model(**call, past_key_values=session)
        assert session.state == state
        assert all(map(torch.equal, contents(session), before))
    logits = [model(**call, past_key_values=s).logits for s in (session, twin)]
    assert torch.equal(*logits)


def test_an_interrupted_first_call_leaves_an_empty_session(model: nn.Module, failing: Failing) -> None:
    fresh, used, wanted = model.session(), model.session(), model(text(30)).logits
    model(text(30, seed=2), past_key_values=used)
    used.reset()
    for session in (fresh, used):
        failing(6)
        with pytest.raises(Interrupt):
            model(text(30, seed=1), past_key_values=session)
        assert (session.tokens_seen, session.columns) == (0, 0)
        assert torch.equal(model(text(30), past_key_values=session).logits, wanted)


def test_an_interrupted_undo_is_remembered(
    model: nn.Module, failing: Failing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: object) -> None:
        raise Interrupt

    session, wanted = model.session(), model(text(9)).logits
    model(text(30), past_key_values=session)
    failing(2)
    with monkeypatch.context() as patch:
        patch.setattr("qfpass.decoder.undo.Overwritten.restore", interrupted)
        with pytest.raises(Interrupt):
            model(text(1), past_key_values=session)
    for use in (lambda: model(text(1), past_key_values=session), session.fork):
        with pytest.raises(SessionError, match=r"interrupted: reset\(\) it"):
            use()
    session.reset()
    assert torch.equal(model(text(9), past_key_values=session).logits, wanted)


def test_ids_outside_the_vocabulary_are_refused(model: nn.Module) -> None:
    session = model.session()
    model(text(9), past_key_values=session)
    for bad in (61, -1, 2**40):
        with pytest.raises(InputError, match="vocabulary has ids from 0 to 60"):
            model(torch.tensor([[5, bad, 3]]), past_key_values=session)
    padding = {"input_ids": torch.tensor([[-100, 5, 3]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    model(**padding, past_key_values=session)
    assert session.tokens_seen == 11
