"""RULER's variable tracking: a chain of assignments scattered over noise."""

import string
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from random import Random

from .task import NOISE, Material, Parts, Task


def variable_tracking(chains: int = 1, hops: int = 4) -> Task:
    """Find every variable of a chain of assignments; one solved example comes first."""

    def make(seed: str, size: int, material: Material) -> Parts:
        example = _vt_example(f"{seed} example", chains, hops, min(500, material.length // 4), material.count)
        shown, question, prefix, names = _vt(Random(seed), size, chains, hops, letters=5)
        return Parts(f"{example}\n\n{shown}\n", question, prefix, names)

    return Task(make, new_tokens=30, smallest=hops + 1)


def _vt(
    random: Random, size: int, chains: int, hops: int, letters: int
) -> tuple[str, str, str, tuple[str, ...]]:
    """Context, question, answer prefix and the variables of the first chain."""
    names: dict[str, None] = {}
    while len(names) < chains * (hops + 1):
        names["".join(random.choices(string.ascii_uppercase, k=letters))] = None
    every = list(names)
    lines, asked = [NOISE] * size, 0
    for chain in range(chains):
        mine = every[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        value = random.randint(10000, 99998)
        asked = asked or value
        steps = [
            f"VAR {mine[0]} = {value}",
            *(f"VAR {b} = VAR {a}" for a, b in pairwise(mine)),
        ]
        places = sorted(random.sample(range(len(lines)), len(steps)))
        for offset, (place, step) in enumerate(zip(places, steps, strict=True)):
            lines.insert(place + offset, step)
    context = "Here and there the text below sets a variable. Keep track of which variable holds what.\n\n"
    question = f"Question: Which variables hold the value {asked}, directly or by way of another?"
    prefix = f"Answer: Following the text, {hops + 1} variables hold the value {asked}, namely:"
    return context + "\n".join(lines), question, prefix, tuple(every[: hops + 1])


@lru_cache(maxsize=64)
def _vt_example(seed: str, chains: int, hops: int, tokens: int, count: Callable[[str], int]) -> str:
    """A solved example of at most `tokens` tokens, or the smallest one if none is so short."""
    best = ""
    for size in range(hops + 1, hops + 1 + tokens):
        context, question, prefix, names = _vt(Random(seed), size, chains, hops, letters=3)
        text = f"{context}\n{question} {prefix} {' '.join(names)}"
        if best and count(text) > tokens:
            break
        best = text
    return best
