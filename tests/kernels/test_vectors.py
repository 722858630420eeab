"""Inductor's trials of vector instructions run once, in a thread that who asks for them waits for."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import cpu_vec_isa

from qfpass.kernels import vectors


class Trials:
    """In Inductor's place: finds nothing, and not before it is let go."""

    def __init__(self) -> None:
        self.may_end, self.threads, self.widths = threading.Event(), set[str](), list[int | None]()

    def __call__(self) -> list[cpu_vec_isa.VecISA]:
        if self.may_end.is_set():  # they are over
            return []
        self.threads.add(threading.current_thread().name)
        self.widths.append(torch._inductor.config.cpp.simdlen)
        assert self.may_end.wait(60)
        return []


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    made = Trials()
    monkeypatch.setattr(vectors, "_try_all", made)
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", made)
    yield made
    made.may_end.set()


def asked(answers: list[bool]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(vectors.has_vectors()), daemon=True)
    thread.start()
    return thread


def test_who_asks_waits_for_the_one_thread(trials: Trials) -> None:
    answers = list[bool]()
    with torch._inductor.config.patch({"cpp.simdlen": 256}):
        for _ in range(3):
            vectors.start_trials()
    asking = [asked(answers) for _ in range(2)]
    asking[0].join(0.2)
    assert answers == []
    trials.may_end.set()
    for thread in asking:
        thread.join(60)
    assert answers == [False, False]
    assert trials.widths == [256] and threading.main_thread().name not in trials.threads


def test_trials_that_fail_fail_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(vectors, "_try_all", fail)
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", fail)
    vectors.start_trials()
    with pytest.raises(RuntimeError, match="no compiler"):
        vectors.has_vectors()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_was_forked_meanwhile_tries_itself(trials: Trials) -> None:
    vectors.start_trials()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        trials.may_end.set()
        os._exit(int(vectors.has_vectors()))  # 0: none; an alarm ends one that waits for ever
    assert os.waitpid(child, 0) == (child, 0)
