"""The form of a RULER task, which makes text samples of any size from a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from ....errors import InputError

NOISE = (
    "Clouds drift over the hill. Water runs in the ditch. The path goes on. Someone walks by, then returns."
)


@dataclass(frozen=True)
class Parts:
    """One sample as text; the answer must hold the `outputs`."""

    context: str
    question: str
    answer_prefix: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """The inputs of a task: the essays' words, the length of a prompt in tokens, and a token counter."""

    essay_words: tuple[str, ...]
    length: int
    count: Callable[[str], int] = field(repr=False)  # tokens of a text


# A task makes a sample of some size (sentences, words) from its own seed.
Maker = Callable[[str, int, Material], Parts]


@dataclass(frozen=True)
class Task:
    """A task: makes samples of sizes from `smallest` to `largest`; answers have up to `new_tokens` tokens.

    If it `reads_essays`, a sample can't be longer than the essays; other haystacks repeat.
    """

    make: Maker
    new_tokens: int
    smallest: int
    largest: Callable[[Material], int] = lambda material: material.length
    reads_essays: bool = False


@cache
def word_lists() -> dict[str, tuple[str, ...]]:
    """Sorted nouns, adjectives and verbs of `wonderwords`."""
    try:
        from wonderwords import RandomWord
    except ImportError:
        raise InputError(
            "RULER's keys and word lists come from the package wonderwords: pip install 'qfpass[evaluate]'."
        ) from None
    source = RandomWord()
    kinds = ("nouns", "adjectives", "verbs")
    return {kind: tuple(sorted(set(source.filter(include_categories=[kind])))) for kind in kinds}
