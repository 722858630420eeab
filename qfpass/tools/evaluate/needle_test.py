"""Needle in a haystack: a fact hidden at some depth of a long text, asked for after compression.

The test is Kamradt's (2023, github.com/gkamradt/LLMTest_NeedleInAHaystack), with needles of three kinds
and the question unseen until the context is compressed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ...errors import InputError
from .footprint import Footprint
from .needles import KINDS, Needle, make_needle
from .prompts import Asker, Prompt, answer
from .spread import mean_and_error
from .text_reader import Model

INTRODUCTION = "Read the following text and remember it. A question about it comes at the end.\n\n"
QUESTION = "\n\nQuestion: "
SENTENCE_ENDS = (".", "?", "!")


@dataclass(frozen=True)
class NeedleAnswer:
    """The answer to one needle: the expected value, the text that the model wrote, and its scores.

    `length` is the context's in tokens; `depth` is the needle's position in it, from 0 to 1.
    """

    length: int
    depth: float
    kind: str
    expected: str
    answer: str
    exact: bool
    partial: float


@dataclass(frozen=True)
class Grid:
    """The heat map: the mean partial score at [depth][length]."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    partial: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, answers: Sequence[NeedleAnswer]) -> "Grid":
        """The heat map of `answers`, which must cover every length at every depth."""
        lengths = tuple(sorted({a.length for a in answers}))
        depths = tuple(sorted({a.depth for a in answers}))

        def cell(depth: float, length: int) -> float:
            here = [a.partial for a in answers if (a.length, a.depth) == (length, depth)]
            return mean_and_error(here)[0]

        return cls(lengths, depths, tuple(tuple(cell(d, n) for n in lengths) for d in depths))


@dataclass(frozen=True)
class NeedleResult:
    """All answers, their heat map, and the footprint of the longest context."""

    answers: tuple[NeedleAnswer, ...]
    grid: Grid
    footprint: Footprint

    @property
    def exact(self) -> tuple[float, float | None]:
        """Share of needles found whole, and its standard error."""
        return mean_and_error([float(a.exact) for a in self.answers])

    @property
    def partial(self) -> tuple[float, float | None]:
        """Mean share of digits or words found, and its standard error."""
        return mean_and_error([a.partial for a in self.answers])

    @property
    def samples(self) -> int:
        """The number of needles."""
        return len(self.answers)

    def measures(self) -> dict[str, tuple[float, float | None]]:
        """See `qfpass.tools.evaluate.report.Result`."""
        return {"exact": self.exact, "partial": self.partial}


def needle(
    model: Model,
    tokenizer: Any,
    haystack: str,
    *,
    lengths: Sequence[int] = (1024, 2048),
    depths: int | Sequence[float] = 10,
    needles: int = 5,
    kinds: Sequence[str] = KINDS,
    chat: bool | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: bool = False,
) -> NeedleResult:
    """Ask for needles hidden in `haystack`, at every length and depth.

    Args:
        model: see `qfpass.tools.evaluate.open_reader`.
        tokenizer: the model's Hugging Face tokenizer.
        haystack: a text of more tokens than the longest length; each needle gets a place of its own in it.
        lengths: tokens of context, needle and introduction included, exactly.
        depths: how many, spread evenly from the start to the end, or the depths themselves, 0 to 1.
        needles: needles at each length and depth, of the kinds in turn.
        kinds: of "numbers", "words" and "sentences".
        chat: see `qfpass.tools.evaluate.Asker`.
        seed: of the needles and of their places in the haystack.
        batch: prompts that run together.

    Raises:
        InputError: an unknown kind, a haystack too short, a length too small, a depth outside 0 to 1.
    """
    asker = Asker(tokenizer, chat)
    cases = _cases(lengths, depths, needles, kinds, seed)
    hay = asker.plain(haystack)
    prompts = [_prompt(asker, hay, case, seed) for case in cases]
    written = answer(model, prompts, stops=asker.stops, batch=batch, progress=progress, name="needles")
    answers = []
    for (length, depth, _, hidden), ids in zip(cases, written.ids, strict=True):
        text = asker.text(ids)
        exact, partial = hidden.score(text)
        answers.append(NeedleAnswer(length, depth, hidden.kind, hidden.value, text, exact, partial))
    return NeedleResult(tuple(answers), Grid.of(answers), written.footprint)


Case = tuple[int, float, int, Needle]  # length, depth, number of the needle, needle


def _cases(
    lengths: Sequence[int], depths: int | Sequence[float], needles: int, kinds: Sequence[str], seed: int
) -> list[Case]:
    if isinstance(depths, int):
        depths = [i / max(1, depths - 1) for i in range(depths)]
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise InputError(f"needle kinds are {', '.join(KINDS)}, not {', '.join(unknown) or 'none'}.")
    if not (lengths and depths and needles > 0) or any(not 0 <= d <= 1 for d in depths):
        raise InputError("needle needs at least one length, one needle and one depth, each from 0 to 1.")
    return [
        (n, d, i, make_needle(kinds[i % len(kinds)], Random(f"needle {seed} {n} {d} {i}")))
        for n in lengths
        for d in depths
        for i in range(needles)
    ]


def _prompt(asker: Asker, hay: tuple[int, ...], case: Case, seed: int) -> Prompt:
    length, depth, index, hidden = case
    before, fact = asker.context(INTRODUCTION), asker.plain(f" {hidden.sentence}")
    room = length - len(before) - len(fact)
    if room < 0:
        raise InputError(f"needle: {length} tokens have no room for a haystack; give a greater length.")
    if len(hay) < room:
        raise InputError(f"needle: the haystack has {len(hay)} tokens; a length of {length} needs {room}.")
    start = Random(f"place {seed} {length} {depth} {index}").randint(0, len(hay) - room)
    straw = hay[start : start + room]
    place = _sentence_end(asker, straw, round(depth * room))
    context = (*before, *straw[:place], *fact, *straw[place:])
    question = asker.question(QUESTION + hidden.question, hidden.answer_prefix)
    return Prompt(context, question, len(asker.plain(" " + hidden.value)) + 5)


def _sentence_end(asker: Asker, straw: tuple[int, ...], place: int) -> int:
    """The end of a sentence at or before `place`, or 0: a needle stands between sentences."""
    while place > 0 and not asker.tokenizer.decode([straw[place - 1]]).rstrip().endswith(SENTENCE_ENDS):
        place -= 1
    return place
