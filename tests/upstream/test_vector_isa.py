"""Inductor's trials of vector instructions run once, in a thread that who asks for them waits for."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._inductor import cpu_vec_isa

from qfpass.upstream import vector_isa
from qfpass.upstream.entry import UpstreamWarning


class Trials:
    """In Inductor's place: finds nothing, and not before it is let go."""

    def __init__(self) -> None:
        self.may_end, self.threads, self.widths = threading.Event(), set[str](), list[int | None]()

    def __call__(self) -> list[Any]:
        if self.may_end.is_set():  # they are over
            return []
        self.threads.add(threading.current_thread().name)
        self.widths.append(torch._inductor.config.cpp.simdlen)
        assert self.may_end.wait(60)
        return []


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before any were started."""
    monkeypatch.setattr(vector_isa, "_started", None)
    monkeypatch.setattr(vector_isa.has_vectors, "failure", None)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, no_trials: None) -> Iterator[Trials]:
    made = Trials()
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", made)
    yield made
    made.may_end.set()


def asked(answers: list[bool]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(vector_isa.has_vectors()), daemon=True)
    thread.start()
    return thread


def test_start_trials_lets_who_asks_wait_for_the_one_thread(trials: Trials) -> None:
    answers = list[bool]()
    with torch._inductor.config.patch({"cpp.simdlen": 256}):
        for _ in range(3):
            vector_isa.start_trials.function()
    asking = [asked(answers) for _ in range(2)]
    asking[0].join(0.2)
    assert answers == []
    trials.may_end.set()
    for thread in asking:
        thread.join(60)
    assert answers == [False, False]
    assert trials.widths == [256] and threading.main_thread().name not in trials.threads


def test_has_vectors_says_no_where_trials_fail(monkeypatch: pytest.MonkeyPatch, no_trials: None) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", fail)
    vector_isa.start_trials.function()
    with pytest.warns(UpstreamWarning, match="no compiler"):
        assert not vector_isa.has_vectors()


def test_has_vectors_knows_those_that_inductor_uses() -> None:
    assert vector_isa.has_vectors.function() == any(
        isa.bit_width() > 0 for isa in cpu_vec_isa.valid_vec_isa_list()
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_was_forked_meanwhile_tries_itself(trials: Trials) -> None:
    vector_isa.start_trials()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        trials.may_end.set()
        os._exit(int(vector_isa.has_vectors()))  # 0: none; an alarm ends one that waits for ever
    assert os.waitpid(child, 0) == (child, 0)
