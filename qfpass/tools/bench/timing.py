"""Times several calls in turn, so that a slow moment of the machine affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

UNTIMED = 2  # first calls, which compile and fill caches
FEWEST = 5  # rounds, whatever they take


@dataclass(frozen=True)
class Timing:
    """Seconds that a call took: median and quartiles."""

    median: float
    lower: float
    upper: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """The summary of at least one sample."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds))


Ready = Callable[[], Callable[[], object]]


def take_turns(
    calls: Mapping[str, Ready],
    *,
    rounds: int,
    seconds: float,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """The timings of all calls, each made once per round; every round begins with another call.

    Args:
        calls: by name, a function that prepares a call (untimed) and returns it.
        rounds: the largest number of rounds.
        seconds: no further round begins after this time, once `FEWEST` rounds are done.
        device: synchronised before and after each call, so that its work is counted.
    """

    def timed(ready: Ready) -> float:
        call = ready()
        _wait(device)
        start = clock()
        call()
        _wait(device)
        return clock() - start

    taken: dict[str, list[float]] = {name: [] for name in calls}
    for ready in calls.values():
        for _ in range(UNTIMED):
            timed(ready)
    names, begin = list(calls), clock()
    for turn in range(rounds):
        if turn >= FEWEST and clock() - begin > seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(timed(calls[name]))
    return {name: Timing.of(samples) for name, samples in taken.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
