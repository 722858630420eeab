"""What a score and a store in eight bits cost, on real weights: decode steps and prefill in turn.

`python benchmarks/scores.py FILTERS`, with trained filters in the folder FILTERS. A step is one after 8,192
tokens at 1,024 slots, a chunk 512 tokens more. "int8, same bytes" has the slots that fit in the float store's
bytes.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import weights_folder
from rich.console import Console
from rich.table import Table

from qfpass.tools.bench.contenders import BoundedContender
from qfpass.tools.bench.prefill import CHUNK
from qfpass.tools.bench.setup import ROOM, Setup
from qfpass.tools.bench.timing import Timing, take_turns

SEEN, SLOTS = 8192, 1024
CPU = torch.device("cpu")


def contenders(model: Any, filters: str) -> list[BoundedContender]:
    """The same decoder, by score and by store; the yardstick first."""
    published = Setup(weights_folder(), score="published")  # type: ignore[arg-type]
    trained = Setup(weights_folder(), score="trained", filters=filters)  # type: ignore[arg-type]
    context = {"context_length": SEEN + ROOM, "verify": False}
    ratio = context["context_length"] / SLOTS
    made = {
        "published": published.compile(model, budget=SLOTS, **context),
        "recency": Setup(published.model, score="recency").compile(model, budget=SLOTS, **context),
        "trained": trained.compile(model, budget=SLOTS, **context),
        "trained, int8": trained.compile(model, budget=SLOTS, store_dtype=torch.int8, **context),
        "trained, int8, same bytes": trained.compile(model, ratio=ratio, store_dtype=torch.int8, **context),
    }
    return [BoundedContender(compiled, name) for name, compiled in made.items()]


def show(title: str, timings: dict[str, Timing], slots: dict[str, int | None]) -> None:
    """Medians with quartiles, and each over the first."""
    table = Table("store", "slots", "ms", "quartiles", "over published", title=title)
    first = next(iter(timings.values())).median
    for name, t in timings.items():
        quartiles = f"{1000 * t.lower:.2f} to {1000 * t.upper:.2f}"
        table.add_row(name, str(slots[name]), f"{1000 * t.median:.2f}", quartiles, f"{t.median / first:.3f}x")
    Console(width=100).print(table)


def main() -> None:
    """See the module."""
    torch.manual_seed(0)
    model = Setup(weights_folder()).load()  # type: ignore[arg-type]
    compared = contenders(model, sys.argv[1])
    slots = {c.name: c.slots for c in compared}
    contexts = {c.name: c.after(SEEN, 1, room=ROOM) for c in compared}
    token, chunk = torch.zeros(1, 1, dtype=torch.long), torch.randint(49_000, (1, CHUNK))
    steps = {name: partial(lambda c: partial(c.read, token), each) for name, each in contexts.items()}
    show("a step", take_turns(steps, rounds=200, seconds=60, device=CPU), slots)
    reads = {name: partial(lambda c: partial(c.twin().read, chunk), each) for name, each in contexts.items()}
    show(f"{CHUNK} tokens", take_turns(reads, rounds=15, seconds=90, device=CPU), slots)


if __name__ == "__main__":
    main()
