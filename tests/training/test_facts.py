"""Invented facts in texts."""

from random import Random

import pytest
from characters import CharacterTokenizer

from qfpass.errors import InputError
from qfpass.training.facts import ask, insert, invent

TEXT = "It was a plain text of no great interest. " * 40


def test_a_text_of_the_wanted_length_holds_every_fact() -> None:
    tokenizer, random = CharacterTokenizer(), Random(0)
    facts = [invent(random) for _ in range(4)]
    text = tokenizer(TEXT).input_ids
    ids = insert(tokenizer, text, facts, random, 600)
    written = tokenizer.decode(ids)
    assert len(ids) == 600
    assert all(fact.sentence in written for fact in facts)
    for fact in facts:
        written = written.replace(f" {fact.sentence}", "")
    assert TEXT.startswith(written)


def test_the_answer_of_a_question_stands_in_its_sentence() -> None:
    tokenizer, random = CharacterTokenizer(), Random(1)
    for _ in range(50):
        fact = invent(random)
        question = ask(tokenizer, fact)
        assert question is not None
        assert fact.answer in fact.sentence
        assert tokenizer.decode(question.answer) == f" {fact.answer}"
        assert fact.question in tokenizer.decode(question.asked)


def test_a_text_without_room_is_refused() -> None:
    tokenizer, random = CharacterTokenizer(), Random(0)
    with pytest.raises(InputError, match="don't fit into a lesson"):
        insert(tokenizer, [1] * 50, [invent(random)], random, 400)
