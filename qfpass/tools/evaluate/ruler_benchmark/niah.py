"""RULER's needle tasks: numbers or uuids of some keys, hidden in essays, noise or other needles."""

import re
import uuid
from collections.abc import Sequence
from random import Random

from .task import NOISE, Material, Parts, Task, word_lists

DEPTHS = [round(100 * i / 39) for i in range(40)]  # percent


def niah(
    haystack: str, keys: str = "words", values: str = "numbers", num_keys: int = 1, num_values: int = 1,
    num_queries: int = 1,
) -> Task:  # fmt: skip
    """A needle-in-a-haystack task; `num_values` values a key, `num_queries` keys asked for."""
    many = num_values * num_queries > 1

    def make(seed: str, size: int, material: Material) -> Parts:
        random = Random(seed)
        names = _distinct(random, keys, max(num_keys, num_queries))
        held = {name: [_value(random, values) for _ in range(num_values)] for name in names}
        needles = [_needle(values, name, value) for name in names for value in held[name]]
        random.shuffle(needles)
        asked = random.sample(names, num_queries)
        if haystack == "essay":
            text = _in_essay(random, needles, material.essay_words, size)
        else:
            text = _in_lines(random, needles, size, haystack, keys, values)
        kind = values if many else values[:-1]
        are = "are" if many else "is"
        query = asked[0] if num_queries == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        return Parts(
            f"The text below tells you to remember certain {values}. Read it closely: a question about the "
            f"{kind} comes at the end.\n{text}\n",
            f"Which {kind} does the text tell you to remember for {query}?",
            f"The {kind} to remember for {query} {are}",
            tuple(value for name in asked for value in held[name]),
        )

    smallest = max(num_keys, num_queries) * num_values
    if haystack == "essay":
        return Task(make, 128, smallest, lambda material: len(material.essay_words), reads_essays=True)
    return Task(make, 128, smallest)


def _value(random: Random, kind: str) -> str:
    if kind == "numbers":
        return str(random.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=random.getrandbits(128), version=4))
    return f"{random.choice(word_lists()['adjectives'])}-{random.choice(word_lists()['nouns'])}"


def _distinct(random: Random, kind: str, count: int) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < count:
        made[_value(random, kind)] = None
    return list(made)


def _needle(kind: str, key: str, value: str) -> str:
    return f"Among the {kind} to remember, this one is for {key}: {value}."


def _in_essay(random: Random, needles: Sequence[str], words: Sequence[str], size: int) -> str:
    """`size` words of the essays with needles between sentences, at some of RULER's 40 depths."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(words[:size]))
    depths, total = sorted(random.sample(DEPTHS, len(needles)), reverse=True), len(sentences)
    for depth, needle in zip(depths, needles, strict=True):
        sentences.insert(int(total * depth / 100), needle)
    return " ".join(sentences)


def _in_lines(
    random: Random, needles: Sequence[str], size: int, haystack: str, keys: str, values: str
) -> str:
    """`size` lines of noise, or of needles that nobody asks for, with needles at random places."""
    places = sorted(random.sample(range(size), len(needles)), reverse=True)
    lines = [NOISE] * size
    if haystack == "needle":
        lines = [_needle(values, _value(random, keys), _value(random, values)) for _ in range(size)]
    for place, needle in zip(places, needles, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)
