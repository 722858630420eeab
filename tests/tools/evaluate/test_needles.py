"""Needles: what they say, and how answers are scored."""

from random import Random

import pytest

from qfpass.errors import InputError
from qfpass.tools.evaluate.needles import KINDS, Needle, make_needle


def number(value: str) -> Needle:
    return Needle("numbers", f"It is {value}.", "What?", "It is", value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sentence_holds_the_value_behind_the_answers_beginning(kind: str) -> None:
    for seed in range(20):
        made = make_needle(kind, Random(seed))
        assert made.sentence == f"{made.answer_prefix} {made.value}."
        assert made.value not in made.question
        assert made.score(f" {made.value}.") == (True, 1.0)
        assert made == make_needle(kind, Random(seed))
    assert len({make_needle(kind, Random(seed)).value for seed in range(20)}) > 15


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [
        ("48213.", True, 1.0),
        ("48,213 it is", True, 1.0),
        ("48913", False, 0.8),
        ("4821", False, 0.8),
        ("482135", False, 1.0),
        ("Oslo. 48213", True, 1.0),
        ("7 or 48213", False, 0.0),
        ("none", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_numbers_count_digits_in_their_place(answer: str, exact: bool, partial: float) -> None:
    assert number("48213").score(answer) == (exact, pytest.approx(partial))


@pytest.mark.parametrize(
    ("answer", "exact", "partial"),
    [
        ("River, candle, and then walnut", False, 1.0),
        ("the words are RIVER, Candle, walnut!", True, 1.0),
        ("river, rivers", False, 1 / 3),
        ("", False, 0.0),
    ],
)
def test_words_count_words(answer: str, exact: bool, partial: float) -> None:
    made = Needle("words", "", "", "", "river, candle, walnut")
    assert made.score(answer) == (exact, pytest.approx(partial))


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match="numbers, words, sentences"):
        make_needle("colours", Random(0))
