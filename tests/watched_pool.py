"""A scheduler's pool whose calls a test sees, and holds back."""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from qfpass.serving import Scheduler


class WatchedPool:
    """Takes the place of a scheduler's pool; tests set its attributes from any thread.

    Attributes:
        calls: "read" and "step", one for each call.
        tokens_read: of prompts.
        steps: the tokens of each step.
        waiting: how many calls of `held` wait now, since the pool isn't open.
        turns: a call that waits takes one of these.
        before: called before a step, and may raise.
    """

    def __init__(self, scheduler: Scheduler, *held: str) -> None:
        self._pool, self._held = scheduler._pool, held
        self.calls, self.tokens_read, self.steps = list[str](), list[int](), list[dict[int, int]]()
        self.waiting, self.is_open, self.turns = 0, not held, threading.Semaphore(0)
        self.before: Callable[[], None] = lambda: None
        scheduler._live._pool = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def read(self, row: int, ids: torch.Tensor) -> torch.Tensor:
        self._wait("read")
        self.tokens_read += ids.tolist()
        return self._pool.read(row, ids)

    def step(self, tokens: dict[int, int]) -> torch.Tensor:
        self._wait("step")
        self.before()
        self.steps.append(tokens)
        return self._pool.step(tokens)

    def _wait(self, name: str) -> None:
        self.calls.append(name)
        if name not in self._held:
            return
        self.waiting += 1
        end = time.monotonic() + 20  # so that a failing test ends
        while not (self.is_open or self.turns.acquire(timeout=0.001)) and time.monotonic() < end:
            pass
        self.waiting -= 1
