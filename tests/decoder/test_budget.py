"""A session's budget: it does what a model compiled with that budget does, and refuses what can't be."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bounded import compiled
from decoders import causal, decoder, text, within
from torch import nn

from qfpass.errors import ConfigError, SessionError


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return decoder([within(8), causal, causal])


@pytest.fixture(scope="module")
def model(original: nn.Module) -> nn.Module:
    """A ring, 16 slots that follow a session's budget, and a layer that keeps every key."""
    return compiled(original, skip_layers=(2,), chunk=None)


@pytest.mark.parametrize("budget", [7, 12])
def test_it_is_a_smaller_compile(original: nn.Module, model: nn.Module, budget: int) -> None:
    smaller = compiled(original, skip_layers=(2,), chunk=None, budget=budget)
    ids = text(40, batch=2)
    for cuts in ((0, 3, 4, 30, 31, 40), (0, 40), tuple(range(41))):
        session, wanted = model.session(budget=budget), smaller.session()
        for a, b in pairwise(cuts):
            actual = model(ids[:, a:b], past_key_values=session)
            torch.testing.assert_close(actual, smaller(ids[:, a:b], past_key_values=wanted))
        held, kept = (s.positions(1).sort(-1).values for s in (session, wanted))
        assert torch.equal(held[..., -budget:], kept)
        assert (held[..., :-budget] == -1).all()


def test_it_lasts_through_reset_fork_and_save(model: nn.Module, tmp_path: Path) -> None:
    session, ids = model.session(budget=9), text(40)
    wanted = model(ids, past_key_values=session)
    session.save(tmp_path / "session")
    session.reset()
    fork = session.fork()
    for each in (session, fork):
        assert each.slots == 9
        assert torch.equal(model(ids, past_key_values=each), wanted)
    loaded = model.session(budget=9).load(tmp_path / "session")
    more = text(5, seed=1)
    assert torch.equal(model(more, past_key_values=loaded), model(more, past_key_values=session))
    with pytest.raises(SessionError, match="in its budget"):
        model.session().load(tmp_path / "session")


def test_what_can_not_be_had_is_refused(model: nn.Module) -> None:
    for budget, error, reason in (
        (17, SessionError, "compiled with 16"),
        (5, ConfigError, r"5 slots is smaller than sinks \(4\)"),
        (0, ConfigError, "at least 2"),
        (9.5, ConfigError, "whole number"),
    ):
        with pytest.raises(error, match=reason):
            model.session(budget=budget)
    with pytest.raises(SessionError, match="keeps every key"):
        compiled(decoder(), budget=None, ratio=1).session(budget=8)
