"""Recall tasks: invented facts that are inserted into a text, and questions that only they answer."""

from dataclasses import dataclass
from random import Random
from typing import Any

from ..errors import InputError

_NAMES = (
    "Adela", "Bertram", "Corinne", "Dmitri", "Edith", "Franz", "Gudrun", "Hamid", "Isolde", "Jorge",
    "Kirsten", "Leopold",
)  # fmt: skip
_OBJECTS = (
    "barge", "cellar", "depot", "engine", "foundry", "gallery", "hangar", "kiosk", "loom", "mill",
    "orchard", "pier", "quarry",
)  # fmt: skip
_WORDS = (
    "acorn", "banjo", "cactus", "dahlia", "ermine", "ferret", "gravel", "heron", "icicle", "jigsaw",
    "kernel", "lichen", "mitten", "nickel", "otter", "parsley", "quiver", "raisin", "sandal", "thimble",
    "urchin", "velvet", "willow", "yarrow", "zipper",
)  # fmt: skip
_DEEDS = (
    "mend the green bicycle", "count the empty barrels", "borrow a wooden spoon", "paint the north fence",
    "polish the brass bell", "water the young pear trees", "trade stamps with a sailor", "bake rye bread",
    "sharpen both axes", "translate the longest letter", "tune the old piano", "sort the winter coats",
    "photograph the weather vane", "sweep the narrow stairs", "write to the landlord", "catch the last ferry",
)  # fmt: skip
_PLACES = (
    "inside the bakery", "across the canal", "beneath the staircase", "outside the north gate",
    "at the dentist's", "between two haystacks", "on the third floor", "next to the petrol station",
    "in her uncle's workshop",
)  # fmt: skip
_TIMES = (
    "during the lunch break", "once the rain stops", "every second Friday", "two days before the wedding",
    "as soon as the shop closes", "in the hottest week of August", "shortly after midnight",
)  # fmt: skip
_PROPERTIES = ("locker code", "call sign", "invoice number", "alias", "part number", "signal word", "batch")
_FORMS = (
    ("The {property} of the {thing} is {answer}.", "What is the {property} of the {thing}?"),
    ("{name} noted that the {thing} has the {property} {answer}.", "Which {property} did {name} note?"),
    ("Remember: {thing}, {property}: {answer}.", "Which {property} goes with the {thing}?"),
    ("{name}'s {property} used to be {answer}.", "What did {name}'s {property} use to be?"),
    ("Under {property} {answer} one finds the {thing}.", "Under which {property} is the {thing} found?"),
    ("Whoever asks {name} for the {property} hears {answer}.", "Which {property} does {name} tell?"),
)


@dataclass(frozen=True)
class Fact:
    """A sentence to insert into a text, and a question with its answer, which is part of the sentence."""

    sentence: str
    question: str
    answer: str


def invent(random: Random) -> Fact:
    """A random fact that neither a text nor the model's weights hold."""
    sentence, question = random.choice(_FORMS)
    thing = f"{random.choice(_WORDS)} {random.choice(_OBJECTS)}"
    parts = {"property": random.choice(_PROPERTIES), "thing": thing, "name": random.choice(_NAMES)}
    answer = _answer(random)
    return Fact(sentence.format(answer=answer, **parts), question.format(**parts), answer)


def _answer(random: Random) -> str:
    """A random answer: digits, a few words, a deed with its place and time, or letters and digits."""
    kind = random.randrange(5)
    if kind < 2:
        return "".join(random.choice("0123456789") for _ in range(random.randint(4, 8)))
    if kind == 2:
        return random.choice((" ", ", ")).join(random.sample(_WORDS, random.randint(1, 4)))
    if kind == 3:
        parts = [random.choice(each) for each in (_DEEDS, _PLACES, _TIMES)]
        return " ".join(parts[: random.randint(1, 3)])
    letters = "".join(random.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(2))
    return f"{letters}-{random.randint(100, 9999)}"


@dataclass(frozen=True)
class Question:
    """Token ids of a question, including the words before its answer, and of the answer."""

    asked: list[int]
    answer: list[int]


def ask(tokenizer: Any, fact: Fact) -> Question | None:
    """The question about a fact as token ids; None if the answer doesn't begin at a token boundary."""
    asked = f"\n\nQuestion: {fact.question}\nAnswer: {fact.sentence.partition(fact.answer)[0]}".rstrip()
    before, both = _ids(tokenizer, asked), _ids(tokenizer, f"{asked} {fact.answer}")
    if both[: len(before)] != before:
        return None
    return Question(before, both[len(before) :])


def insert(tokenizer: Any, text: list[int], facts: list[Fact], random: Random, length: int) -> list[int]:
    """`length` token ids of a text with the facts inserted, each at a random depth.

    Raises:
        InputError: the facts leave no room for text, or the text is too short.
    """
    pieces = [sentence_ids(tokenizer, fact) for fact in facts]
    room = length - sum(map(len, pieces))
    if room < 1 or len(text) < room:
        raise InputError(
            f"{len(facts)} facts of {sum(map(len, pieces))} tokens don't fit into a lesson of {length} "
            f"tokens from a text of {len(text)}: give a larger length, or longer texts."
        )
    depths = sorted(random.randrange(room + 1) for _ in pieces)
    ids, last = [], 0
    for depth, piece in zip(depths, pieces, strict=True):
        ids += text[last:depth] + piece
        last = depth
    return ids + text[last:room]


def sentence_ids(tokenizer: Any, fact: Fact) -> list[int]:
    """The token ids of a fact's sentence, as it is inserted into a text."""
    return _ids(tokenizer, f" {fact.sentence}")


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
