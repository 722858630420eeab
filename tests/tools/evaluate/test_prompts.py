"""Prompts and greedy answers against plain generation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.errors import InputError
from qfpass.tools.evaluate.prompts import Asker, Prompt, answer

Ids = Callable[..., torch.Tensor]
TEMPLATE = (
    "{% for m in messages %}<start>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)


def prompts(random_ids: Ids) -> list[Prompt]:
    """Prompts of two lengths of context and of question, out of order."""
    shapes = [(30, 5, 6), (20, 5, 6), (30, 5, 4), (20, 3, 6), (30, 5, 6)]
    return [
        Prompt(
            tuple(random_ids(1, c, seed=i)[0].tolist()), tuple(random_ids(1, q, seed=i + 50)[0].tolist()), n
        )
        for i, (c, q, n) in enumerate(shapes)
    ]


@pytest.mark.parametrize("kind", ["plain", "compiled"])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_answers_are_those_of_generate(
    model: Any, compiled: Any, random_ids: Ids, kind: str, batch: int
) -> None:
    asked = prompts(random_ids)
    answers = answer(model if kind == "plain" else compiled(ratio=1), asked, batch=batch)
    for prompt, given in zip(asked, answers.ids, strict=True):
        ids = torch.tensor([prompt.context + prompt.question])
        whole = model.generate(
            ids, max_new_tokens=prompt.new_tokens, min_new_tokens=prompt.new_tokens, do_sample=False
        )
        assert list(given) == whole[0, ids.shape[1] :].tolist()


def test_a_bounded_answer_goes_on_from_the_compressed_context(compiled: Any, random_ids: Ids) -> None:
    bounded, (prompt, *_) = compiled(budget=16), prompts(random_ids)
    session = bounded.session()
    bounded(torch.tensor([prompt.context]), past_key_values=session)
    logits = bounded(torch.tensor([prompt.question]), past_key_values=session).logits
    expected = []
    for _ in range(prompt.new_tokens):
        expected.append(int(logits[0, -1].argmax()))
        logits = bounded(torch.tensor([[expected[-1]]]), past_key_values=session).logits
    answers = answer(bounded, [prompt])
    assert list(answers.ids[0]) == expected
    assert answers.footprint.slots == 16


def test_stops_end_one_rows_answer_alone(model: nn.Module, random_ids: Ids) -> None:
    asked = [p for p in prompts(random_ids) if len(p.context) == 30]
    whole = answer(model, asked).ids
    stop = whole[0][2]
    cut = answer(model, asked, stops=[stop]).ids
    for before, after in zip(whole, cut, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)


def test_plain_prompts_are_the_text(tokenizer: Any) -> None:
    asker = Asker(tokenizer)
    assert not asker.chat
    assert tokenizer.decode(asker.context("Some text.")) == "Some text."
    assert tokenizer.decode(asker.question("\nWhat?", "It is")) == "\nWhat? It is"


def test_a_chat_wraps_context_and_question_in_one_turn(tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    asker = Asker(tokenizer)
    text = tokenizer.decode(asker.context("Some text.") + asker.question("\nWhat?", "It is"))
    assert text == "<start>user\nSome text.\nWhat?<end>\n<start>assistant\nIt is"
    assert asker.stops == {0, 1}
    assert Asker(tokenizer, chat=False).context("a") == asker.plain("a")


def test_chat_needs_a_template(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="chat template"):
        Asker(tokenizer, chat=True)
