"""Texts that a model writes: kinds in turn, openings of one length, and long texts made of several."""

from random import Random

from characters import CharacterTokenizer

from qfpass.training.self_texts import OPENINGS, long_texts, openings


def test_every_kind_opens_a_text() -> None:
    kinds = len(OPENINGS)
    first = openings(CharacterTokenizer(), 2 * kinds, Random(0))
    assert len({len(ids) for ids in first}) == 1 and len(first) == 2 * kinds
    texts = ["".join(map(chr, ids)) for ids in first]
    assert len(set(texts)) == 2 * kinds
    for i, text in enumerate(texts):
        of_kind = list(OPENINGS.values())[i % kinds]
        assert any(opening.startswith(text) for opening in of_kind)


def test_long_texts_hold_every_written_one() -> None:
    written = [[i] * 10 for i in range(4)]
    texts = long_texts(written, 55, 3, Random(0))
    assert len(texts) == 3 and all(len(text) >= 55 and set(text) == {0, 1, 2, 3} for text in texts)
