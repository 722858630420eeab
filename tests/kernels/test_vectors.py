"""Inductor's trials of vector instructions run in a thread, once, and say what Inductor says."""

import threading

import pytest
import torch
from torch._inductor.cpu_vec_isa import pick_vec_isa

from qfpass.kernels import vectors


def test_says_what_inductor_says() -> None:
    assert vectors.has_vectors() == bool(pick_vec_isa())


def test_settings_that_hold_now_decide() -> None:
    assert not torch._inductor.config.patch({"cpp.simdlen": 3})(vectors.has_vectors)()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[threading.Thread, int | None]]:
    """The threads that tried, each with the width that it was asked for; none has before."""
    seen = list[tuple[threading.Thread, int | None]]()

    def pick() -> bool:
        seen.append((threading.current_thread(), torch._inductor.config.cpp.simdlen))
        return True

    monkeypatch.setattr(vectors, "pick_vec_isa", pick)
    monkeypatch.setattr(vectors, "start_trials", vectors.start_trials.__wrapped__)
    return seen


def test_trials_run_in_a_thread_under_the_callers_settings(
    started: list[tuple[threading.Thread, int | None]],
) -> None:
    with torch._inductor.config.patch({"cpp.simdlen": 256}):
        assert vectors.start_trials().result(timeout=60)
    ((thread, width),) = started
    assert thread is not threading.main_thread() and width == 256
