"""session.crop: what transformers asks for, what is refused and why, what forks and failures leave of it."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from croppable import TAKE_BACK, WINDOWS, check_same, compiled, in_order, model_named
from rows import text
from torch import nn
from transformers import Cache, DynamicCache

from qfpass import Session
from qfpass.decoder.taken_back import require_kept
from qfpass.errors import ConfigError, InputError, SessionError


@pytest.fixture(scope="module")
def moving() -> nn.Module:
    """A model whose stored keys are moved at 40 positions."""
    return compiled(context_length=40, overflow="rerotate")


def test_all_that_was_read_can_be_taken_back() -> None:
    model = model_named(WINDOWS)
    session = model.session(take_back=TAKE_BACK)
    model(text(3), past_key_values=session)
    session.crop(-3)
    assert (session.tokens_seen, session.columns) == (0, 0)
    other, fresh = text(20, seed=1), model.session(take_back=TAKE_BACK)
    wanted = model(other, past_key_values=fresh).logits
    assert torch.equal(model(other, past_key_values=session).logits, wanted)


def test_crop_is_asked_as_the_installed_transformers_asks() -> None:
    model = model_named(WINDOWS)
    session, more = model.session(take_back=TAKE_BACK), text(2, seed=3)
    assert session.is_croppable and not model.session().is_croppable
    model(text(9), past_key_values=session)
    like = DynamicCache()
    like.update(torch.zeros(1, 1, 9, 1), torch.zeros(1, 1, 9, 1), 0)
    for argument in (-1, 0 if removes_tokens() else 6, -1):
        for cache in (session, like):
            cache.crop(argument)
        assert session.get_seq_length() == like.get_seq_length()
    if removes_tokens():
        with pytest.raises(InputError, match=r"crop\(7\) has no meaning: crop\(-7\)"):
            session.crop(7)
    model(more, past_key_values=session)


def removes_tokens() -> bool:
    """Whether crop is told how many tokens to remove, as in newer versions, and not how many to keep."""
    return "tokens_to_remove" in inspect.signature(Cache.crop).parameters


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        (6, SessionError, "take_back=6 is more than 5, the newest tokens that are never evicted"),
        (-1, ConfigError, "whole number"),
        (True, ConfigError, "whole number"),
    ],
)
def test_more_than_all_layers_keep_is_refused(
    moving: nn.Module, wrong: int, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        moving.session(take_back=wrong)


def test_a_window_bounds_what_can_be_taken_back() -> None:
    decoder = model_named(WINDOWS).qfpass_decoder
    sizes = dataclasses.replace(decoder.sizes, recent=8)
    require_kept(5, sizes, decoder.layers)
    with pytest.raises(SessionError, match=r"take_back=6 is more than 5, the window of .*layers\.0"):
        require_kept(6, sizes, decoder.layers)


def refused(session: Session, columns: int, reason: str) -> None:
    """Taking the last columns back is refused and changes nothing."""
    state = session.state
    with pytest.raises(SessionError, match=reason):
        session.crop(-columns)
    assert session.state is state


def test_what_is_not_kept_is_refused_with_the_reason(moving: nn.Module, tmp_path: Path) -> None:
    session = moving.session()
    moving(text(20), past_key_values=session)
    refused(session, 2, r"2 tokens can't be taken back.*session\(take_back=2\), or fork\(\) it before")
    session = moving.session(take_back=4)
    moving(text(20), past_key_values=session)
    refused(session, 5, r"5 tokens can't be taken back, only the newest 4, by take_back=4: fork\(\)")
    refused(session, 21, "21 tokens can't be taken back: the session has read 20")
    session.pin(18, 20)
    refused(session, 1, "only the newest 0, since tokens were pinned")
    moving(text(3), past_key_values=session)
    refused(session, 4, "only the newest 3, since tokens were pinned")
    session.crop(-2)
    session.save(tmp_path / "session")
    session = moving.session(take_back=4).load(tmp_path / "session")
    refused(session, 1, "since it was loaded")


def test_nothing_is_taken_back_across_a_move_of_the_keys(moving: nn.Module) -> None:
    session, fresh = moving.session(take_back=4), moving.session()
    moving(text(39), past_key_values=session)
    moving(text(3, seed=1), past_key_values=session)
    refused(session, 4, "only the newest 3, since the stored keys were moved to earlier positions")
    session.crop(-1)
    for ids in (text(39)[:, :35], text(39)[:, 35:], text(3, seed=1)[:, :2]):
        moving(ids, past_key_values=fresh)
    check_same(in_order(session, 0), in_order(fresh, 0))


def test_pinned_tokens_that_are_kept_stay_pinned(moving: nn.Module) -> None:
    sessions = [moving.session(take_back=4), moving.session()]
    for session in sessions:
        moving(text(6), past_key_values=session)
        session.pin(3, 5)
    moving(text(9, seed=1), past_key_values=sessions[0])
    sessions[0].crop(-2)
    for ids in text(9, seed=1)[:, :7].split(5, 1):
        moving(ids, past_key_values=sessions[1])
    check_same(*(in_order(session, 0) for session in sessions))


def test_a_failed_call_takes_nothing_from_what_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_named(WINDOWS)
    session = model.session(take_back=4)
    model(text(20), past_key_values=session)
    twin, state = session.fork(), session.state
    for length in (1, 3, 9):
        with monkeypatch.context() as patch:
            patch.setattr(session, "note_read", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(text(length), past_key_values=session)
        assert session.state is state
        check_same(in_order(session, 0), in_order(twin, 0))
    for each in (session, twin):
        each.crop(-3)
    check_same(in_order(session, 0), in_order(twin, 0))


def test_a_fork_and_rows_chosen_anew_take_back_what_is_theirs() -> None:
    model, ids = model_named(WINDOWS), torch.cat([text(20, seed=n) for n in range(3)])
    session = model.session(take_back=4)
    model(ids, past_key_values=session)
    fork = session.fork()
    model(ids[:, :2], past_key_values=fork)
    before = [in_order(session, row) for row in range(3)]
    fork.crop(-3)
    for row in range(3):
        check_same(in_order(session, row), before[row])
    session.reorder_cache(torch.tensor([2, 2, 0]))
    session.batch_select_indices(torch.tensor([1, 2]))
    session.batch_repeat_interleave(2)
    session.crop(-1)
    fork_again = [2, 2, 0, 0]
    for row, old in enumerate(fork_again):
        check_same(in_order(session, row), in_order(fork, old))


def test_reset_forgets_what_can_be_taken_back() -> None:
    model = model_named(WINDOWS)
    session = model.session(take_back=4)
    model(text(9), past_key_values=session)
    session.reset()
    with pytest.raises(SessionError, match="1 tokens can't be taken back: the session has read 0"):
        session.crop(-1)
