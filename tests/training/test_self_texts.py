"""Texts that a model writes: kinds in turn, openings of one length, and long texts made of several."""

from random import Random

import torch
from characters import CharacterTokenizer
from tiny import FAMILIES

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.rewriting.uncompressed import Uncompressed
from qfpass.training.self_texts import OPENINGS, long_texts, openings, write_texts


def test_every_kind_opens_a_text() -> None:
    kinds = len(OPENINGS)
    first = openings(CharacterTokenizer(), 2 * kinds, Random(0))
    assert len({len(ids) for ids in first}) == 1 and len(first) == 2 * kinds
    texts = ["".join(map(chr, ids)) for ids in first]
    assert len(set(texts)) == 2 * kinds
    for i, text in enumerate(texts):
        of_kind = list(OPENINGS.values())[i % kinds]
        assert any(opening.startswith(text) for opening in of_kind)


def test_a_text_goes_on_from_its_opening() -> None:
    captured = capture(FAMILIES["llama"](vocab=128))
    first = openings(CharacterTokenizer(), 3, Random(0))
    first = [ids[:20] for ids in first]

    def write(seed: int) -> list[list[int]]:
        program = Uncompressed(captured, find_attentions(captured, None), capacity=60, batch=3)
        return write_texts(program.read, first, 60, seed, torch.device("cpu"), progress=False)

    written = write(0)
    assert [len(text) for text in written] == [60] * 3 and [text[:20] for text in written] == first
    assert write(0) == written != write(1)


def test_long_texts_hold_every_written_one() -> None:
    written = [[i] * 10 for i in range(4)]
    texts = long_texts(written, 55, 3, Random(0))
    assert len(texts) == 3 and all(len(text) >= 55 and set(text) == {0, 1, 2, 3} for text in texts)
