"""Reading a prompt: chunks at chosen places of a long text, and whole texts from the first token."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .contenders import Contender, Context
from .record import Figure
from .timing import Timing, take_turns

CHUNK = 512


def chunks(
    contenders: Sequence[Contender], tokens: int, vocabulary: int, dtype: str, **turns: Any
) -> list[Figure]:
    """Milliseconds to read `CHUNK` more tokens after `tokens`, for each contender."""
    ids = _random_ids(CHUNK, vocabulary, turns["device"])

    def ready(context: Context) -> Callable[[], object]:
        return partial(context.twin().read, ids)

    timings = take_turns({c.name: partial(ready, c.after(tokens, 1)) for c in contenders}, **turns)
    return [
        Figure.of_time(
            timings[c.name], measure="chunk", contender=c.name, dtype=dtype, batch=1, tokens=tokens,
            slots=c.slots,
        )
        for c in contenders
    ]  # fmt: skip


def prefill(
    contenders: Sequence[Contender], tokens: int, vocabulary: int, dtype: str, **turns: Any
) -> list[Figure]:
    """Tokens/s of a prompt of `tokens` read with an empty cache, and milliseconds to its last logits.

    Every contender reads it in pieces of `CHUNK`.
    """
    ids = _random_ids(tokens, vocabulary, turns["device"])

    def ready(contender: Contender) -> Callable[[], object]:
        context = contender.after(0, 1)
        return lambda: [context.read(piece) for piece in ids.split(CHUNK, dim=1)]

    timings = take_turns({c.name: partial(ready, c) for c in contenders}, **turns)
    return [f for c in contenders for f in _both(timings[c.name], c, tokens, dtype)]


def _both(timing: Timing, contender: Contender, tokens: int, dtype: str) -> list[Figure]:
    where: dict[str, Any] = {
        "contender": contender.name, "dtype": dtype, "batch": 1, "tokens": tokens, "slots": contender.slots,
    }  # fmt: skip
    speeds = [tokens / t for t in (timing.median, timing.upper, timing.lower)]
    speed = Figure("prefill", unit="tokens/s", value=speeds[0], lower=speeds[1], upper=speeds[2],
                   samples=timing.samples, **where)  # fmt: skip
    return [speed, Figure.of_time(timing, measure="first token", **where)]


def long_prefill(chunk_figures: Sequence[Figure], tokens: int) -> list[Figure]:
    """tokens/s of a prompt of `tokens`, from the chunks measured along it.

    Between two measured positions a chunk's time is interpolated linearly, since attention's time is linear.
    Contenders measured at fewer than two positions, or not far enough, are left out.
    """
    figures = []
    for name in dict.fromkeys(f.contender for f in chunk_figures):
        own = sorted((f for f in chunk_figures if f.contender == name), key=lambda f: f.tokens)
        last = (tokens - 1) // CHUNK * CHUNK
        if len(own) < 2 or own[0].tokens > 0 or own[-1].tokens < last:
            continue
        milliseconds = sum(_between(own, start) for start in range(0, last + 1, CHUNK))
        speed = 1000 * (last + CHUNK) / milliseconds
        dtype, slots = own[0].dtype, own[0].slots
        figures.append(
            Figure("long prefill", name, dtype, 1, tokens, "tokens/s", speed, samples=len(own), slots=slots)
        )
    return figures


def _between(figures: Sequence[Figure], tokens: int) -> float:
    """A chunk's time after `tokens`, on the line between its neighbours."""
    after = next(i for i, f in enumerate(figures) if f.tokens >= tokens)
    right = figures[after]
    left = figures[max(0, after - 1)]
    if right.tokens == left.tokens:
        return right.value
    share = (tokens - left.tokens) / (right.tokens - left.tokens)
    return left.value + share * (right.value - left.value)


def _random_ids(tokens: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, tokens), generator=generator).to(device)
