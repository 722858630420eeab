"""Times decode steps: all contenders at one context length, and bounded stores over all lengths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .bandwidth import reader
from .contenders import Contender, Context
from .record import Figure
from .timing import Ready, Timing, take_turns

READ = "reading memory"


def decode(
    contenders: Sequence[Contender], tokens: int, batch: int, weights: int, dtype: str, **turns: Any
) -> list[Figure]:
    """Times of a decode step of `contenders` after `tokens` tokens of `batch` rows; `weights` in bytes.

    `turns` are `take_turns`'s rounds, seconds and device.
    """
    contexts = {(c.name, tokens): c.after(tokens, batch, room=turns["rounds"] + 8) for c in contenders}
    return _steps("decode", contenders, contexts, batch, weights, dtype, turns)


def steady(
    contenders: Sequence[Contender], tokens: Sequence[int], weights: int, dtype: str, **turns: Any
) -> list[Figure]:
    """Times of a decode step of one row after each of `tokens`: whether it depends on the tokens seen."""
    contexts = {(c.name, n): c.after(n, 1, room=turns["rounds"] + 8) for c in contenders for n in tokens}
    return _steps("steady", contenders, contexts, 1, weights, dtype, turns)


def _steps(
    measure: str,
    contenders: Sequence[Contender],
    contexts: Mapping[tuple[str, int], Context],
    batch: int,
    weights: int,
    dtype: str,
    turns: dict[str, Any],
) -> list[Figure]:
    ids = torch.zeros(batch, 1, dtype=torch.long, device=turns["device"])
    read, read_nbytes = reader(turns["device"])
    calls: dict[Any, Ready] = {place: _step(context, ids) for place, context in contexts.items()}
    timings: dict[Any, Timing] = take_turns({**calls, READ: lambda: read}, **turns)
    seconds_a_byte = timings[READ].median / read_nbytes
    slots = {c.name: c.slots for c in contenders}
    read_weights = {c.name: weights - c.unread for c in contenders}
    figures = [
        Figure.of_time(
            timings[place], measure=measure, contender=place[0], dtype=dtype, batch=batch, tokens=place[1],
            slots=slots[place[0]], bound=1000 * seconds_a_byte * (read_weights[place[0]] + context.nbytes),
        )
        for place, context in contexts.items()
    ]  # fmt: skip
    speed = Figure(measure, READ, dtype, batch, 0, "GB/s", 1e-9 / seconds_a_byte)
    return [*figures, speed]


def _step(context: Context, ids: torch.Tensor) -> Callable[[], Callable[[], object]]:
    return lambda: lambda: context.read(ids)
