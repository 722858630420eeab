"""RULER's aggregation tasks: the most common words of a list, the most frequent of a coded text."""

import math
import string
from collections.abc import Sequence
from functools import cache
from random import Random

from .task import Material, Parts, Task, word_lists

FULL_SIZE = 4096  # tokens; below it RULER repeats the words of `cwe` less often
ZIPF = 2.0


def common_words(common: int = 10) -> Task:
    """Find the ten words that a numbered list repeats most; one solved example comes first."""

    def make(seed: str, size: int, material: Material) -> Parts:
        random = Random(seed)
        full = material.length >= FULL_SIZE
        example, solved = _cwe(random, *((40, 10, 3) if full else (20, 3, 1)), common)
        shown, words = _cwe(random, size, *((30, 3) if full else (6, 1)), common)
        question = "Question: Which 10 words does the list repeat most?"
        prefix = "Answer: The 10 words repeated most are:"
        return Parts(
            f"{example}\n{question} {prefix} {_numbered(solved)}\n{shown}\n", question, prefix, tuple(words)
        )

    return Task(make, new_tokens=120, smallest=common + 1, largest=lambda material: len(_every_word()))


def frequent_words(letters: int = 6) -> Task:
    """Find the three most frequent coded words of a Zipf-distributed text; dots are the most frequent."""

    def make(seed: str, size: int, material: Material) -> Parts:
        random = Random(seed)
        coded = max(4, material.length // 50) - 1
        vocabulary = [
            "...",
            *("".join(random.choices(string.ascii_lowercase, k=letters)) for _ in range(coded)),
        ]
        zeta = math.pi**2 / 6  # the sum of all k ** -2
        text = [w for k, w in enumerate(vocabulary, 1) for _ in range(int(size * k**-ZIPF / zeta))]
        random.shuffle(text)
        return Parts(
            "This text is in code. Count its words as you read, and note which three lead the count: "
            f"{' '.join(text)}\n",
            "Question: Leaving the dots aside, which three words of the code occur most? Only name them.",
            "Answer: The three words of the code that occur most are:",
            tuple(vocabulary[1:4]),
        )

    return Task(make, new_tokens=50, smallest=60)


def _cwe(random: Random, size: int, often: int, seldom: int, common: int) -> tuple[str, list[str]]:
    words = random.sample(_every_word(), size)
    top, rest = words[:common], words[common:]
    text = top * often + rest * seldom
    random.shuffle(text)
    intro = (
        "A numbered list of words follows. A few of them are repeated more than the rest; keep in mind which "
        "ones they are.\n"
    )
    return intro + _numbered(text), top


@cache
def _every_word() -> list[str]:
    return sorted({word for words in word_lists().values() for word in words})


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
