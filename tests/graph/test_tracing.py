"""Garbage collection and stack traces are off while something is traced, and then as they were."""

import gc

import pytest
from torch import fx

from qfpass.graph.tracing import without_bookkeeping


def state() -> tuple[bool, bool]:
    return gc.isenabled(), fx.config.do_not_emit_stack_traces


@without_bookkeeping()
def fail() -> None:
    assert state() == (False, True)
    raise KeyError


def test_all_is_as_before_also_after_an_error() -> None:
    before = state()
    with pytest.raises(KeyError):
        fail()
    assert state() == before == (True, False)


def test_one_within_another_leaves_what_it_found() -> None:
    with without_bookkeeping():
        with without_bookkeeping():
            pass
        assert state() == (False, True)
    assert state() == (True, False)
