"""Needles: facts that no haystack holds, with their questions and how answers are scored."""

import re
from dataclasses import dataclass
from random import Random

from ...errors import InputError

KINDS = ("numbers", "words", "sentences")
DIGITS, WORDS = 5, 3  # of a number needle, of a words needle

PLACES = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Quito", "Dublin", "Hanoi", "Prague", "Cairo", "Montreal", "Athens",
    "Jakarta", "Vienna", "Havana", "Helsinki", "Lima", "Seoul", "Tunis", "Warsaw", "Sydney",
)  # fmt: skip
THINGS = (
    "river", "candle", "anchor", "violin", "pepper", "lantern", "meadow", "hammer", "saddle", "turtle",
    "marble", "pillow", "walnut", "compass", "feather", "kettle", "ladder", "mirror", "orchid", "basket",
    "copper", "dolphin", "emerald", "falcon", "ginger", "harbour", "ivory", "jacket", "lemon", "mustard",
)  # fmt: skip
DEEDS = (
    "eat a warm pretzel", "drink mint tea", "fly a paper kite", "play chess with a stranger",
    "sketch the boats", "listen to a brass band", "ride a yellow tram", "feed the swans",
    "dance a slow waltz", "buy a straw hat",
)  # fmt: skip
SPOTS = (
    "under the old bridge", "beside the clock tower", "in the botanical garden", "on the harbour wall",
    "behind the opera house", "at the flower market", "on the cathedral steps", "near the lighthouse",
)  # fmt: skip
TIMES = (
    "on a rainy Tuesday", "before sunrise", "on a windy afternoon", "at the end of winter",
    "after the first snow", "on a foggy evening",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A fact: the sentence that is hidden, the question, how its answer begins, and the value asked for."""

    kind: str
    sentence: str
    question: str
    answer_prefix: str
    value: str

    def score(self, answer: str) -> tuple[bool, float]:
        """Whether `answer` holds the whole value, and the share of the value that it holds.

        For numbers the share counts digits that the answer's first number has at the same position; for
        words and sentences it counts words that occur. Case and punctuation don't matter.
        """
        if self.kind == "numbers":
            first = re.search(r"\d+", answer.replace(",", ""))
            digits = first.group() if first else ""
            right = sum(a == b for a, b in zip(self.value, digits, strict=False))
            return digits == self.value, right / len(self.value)
        wanted, given = _words(self.value), _words(answer)
        found = sum(word in given for word in wanted)
        return " ".join(wanted) in " ".join(given), found / len(wanted)


def make_needle(kind: str, random: Random) -> Needle:
    """A needle of one of `KINDS`."""
    place = random.choice(PLACES)
    if kind == "numbers":
        value = str(random.randrange(10 ** (DIGITS - 1), 10**DIGITS))
        subject, name = f"The secret number of {place}", "secret number"
    elif kind == "words":
        value = ", ".join(random.sample(THINGS, WORDS))
        subject, name = f"The secret words of {place}", "secret words"
    elif kind == "sentences":
        value = " ".join(random.choice(part) for part in (DEEDS, SPOTS, TIMES))
        subject, name = f"The best thing to do in {place}", "best thing to do"
    else:
        raise InputError(f"needle kinds are {', '.join(KINDS)}, not {kind!r}.")
    verb = "are" if kind == "words" else "is"
    where = "in" if kind == "sentences" else "of"
    sentence = f"{subject} {verb}: {value}." if kind == "words" else f"{subject} {verb} {value}."
    prefix = f"{subject} {verb}:" if kind == "words" else f"{subject} {verb}"
    return Needle(kind, sentence, f"What {verb} the {name} {where} {place}?", prefix, value)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
