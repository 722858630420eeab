"""Calls take turns, preparation isn't timed, and the figures are medians and quartiles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qfpass.tools.bench.timing import FEWEST, UNTIMED, Timing, take_turns

CPU = torch.device("cpu")


def test_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


class Clock:
    """Time passes only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, prepare: float = 0.0) -> Callable[[], Any]:
        def call() -> None:
            self.now += seconds
            self.done.append(name)

        def ready() -> Callable[[], None]:
            self.now += prepare
            return call

        return ready


def test_preparation_is_not_timed_and_rounds_begin_in_turn() -> None:
    clock = Clock()
    calls = {"a": clock.work("a", 1.0, prepare=50.0), "b": clock.work("b", 2.0), "c": clock.work("c", 4.0)}
    timings = take_turns(calls, rounds=6, seconds=1e9, device=CPU, clock=clock)
    assert {name: t.median for name, t in timings.items()} == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert {t.samples for t in timings.values()} == {6}
    assert "".join(clock.done) == "aabbcc"[: 3 * UNTIMED] + "abcbcacab" * 2


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, FEWEST), (7.5, 8), (1e9, 20)])
def test_time_ends_the_rounds(seconds: float, expected: int) -> None:
    clock = Clock()
    timings = take_turns({"a": clock.work("a", 1.0)}, rounds=20, seconds=seconds, device=CPU, clock=clock)
    assert timings["a"].samples == expected
