"""Needle in a haystack: prompts of exact length, and a model that can or can't see the needle."""

from collections import Counter
from typing import Any

import pytest
import torch
from assets import essays_text, weights_folder
from torch import nn

from qfpass.errors import InputError
from qfpass.tools import evaluate
from qfpass.tools.evaluate.needle_test import _cases, _prompt
from qfpass.tools.evaluate.prompts import Asker
from qfpass.tools.evaluate.text_reader import open_reader


class Copyist:
    """A reader's maker that knows the answer whenever the needle's sentence is in its context."""

    def __init__(self, tokenizer: Any, vocabulary: int, deepest: float = 1.0) -> None:
        self.tokenizer, self.vocabulary, self.deepest = tokenizer, vocabulary, deepest

    def reader(self, tokens: int) -> "CopyistReader":
        return CopyistReader(self)


class CopyistReader:
    """Row by row, the text behind the question's last words wherever the context has them."""

    slots = 7
    footprint = evaluate.Footprint(7, 70)

    def __init__(self, maker: Copyist) -> None:
        self.maker, self.answers = maker, list[list[int]]()

    def prefill(self, ids: torch.Tensor) -> None:
        self.contexts = [self.maker.tokenizer.decode(row) for row in ids.tolist()]

    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        if not self.answers:
            for context, question in zip(self.contexts, ids.tolist(), strict=True):
                prefix = self.maker.tokenizer.decode(question).split("? ")[-1]
                place = context.find(prefix)
                seen = 0 <= place <= self.maker.deepest * len(context)
                text = context[place + len(prefix) :].split(".")[0] if seen else " nothing"
                self.answers.append([*self.maker.tokenizer(text).input_ids, 0])
        logits = torch.zeros(len(ids), 1, self.maker.vocabulary)
        for row, answer in enumerate(self.answers):
            logits[row, 0, answer.pop(0) if answer else 0] = 1
        return logits


def test_contexts_have_the_length_asked_for_and_the_needle_at_its_depth(tokenizer: Any, essays: str) -> None:
    asker = Asker(tokenizer)
    hay = asker.plain(essays)
    for case in _cases((300, 500), 5, 6, ("numbers", "words", "sentences"), seed=3):
        length, depth, _, hidden = case
        prompt = _prompt(asker, hay, case, seed=3)
        assert len(prompt.context) == length
        text = tokenizer.decode(prompt.context)
        assert text.count(hidden.sentence) == 1
        before = text[: text.index(hidden.sentence)].rstrip()
        assert before.endswith((".", ":", "end."))
        # Within a sentence of its depth, and never behind it.
        place = len(asker.context(before)) / length
        assert depth - 0.35 < place < depth + 0.2
        assert tokenizer.decode(prompt.question).endswith(f"{hidden.question} {hidden.answer_prefix}")
        assert len(asker.plain(" " + hidden.value)) < prompt.new_tokens


def test_every_length_and_depth_gets_its_needles(tokenizer: Any) -> None:
    cases = _cases((300, 500), 3, 6, ("numbers", "words", "sentences"), seed=0)
    assert len(cases) == 2 * 3 * 6
    assert {(n, d) for n, d, *_ in cases} == {(n, d) for n in (300, 500) for d in (0.0, 0.5, 1.0)}
    assert Counter(hidden.kind for *_, hidden in cases) == {"numbers": 12, "words": 12, "sentences": 12}
    assert cases == _cases((300, 500), 3, 6, ("numbers", "words", "sentences"), seed=0)
    assert cases != _cases((300, 500), 3, 6, ("numbers", "words", "sentences"), seed=1)


def test_a_reader_that_sees_every_needle_scores_all(tokenizer: Any, essays: str) -> None:
    model = Copyist(tokenizer, 420)
    result = evaluate.needle(model, tokenizer, essays, lengths=(300,), depths=3, needles=3)
    assert result.exact == (1.0, 0.0)
    assert result.partial == (1.0, 0.0)
    assert result.samples == 9
    assert result.footprint == evaluate.Footprint(7, 70)
    assert result.grid.partial == ((1.0,),) * 3


def test_the_map_shows_where_needles_are_lost(tokenizer: Any, essays: str) -> None:
    model = Copyist(tokenizer, 420, deepest=0.6)
    result = evaluate.needle(
        model, tokenizer, essays, lengths=(300, 500), depths=(0.0, 1.0), needles=4, kinds=["numbers"]
    )
    assert result.grid.lengths == (300, 500)
    assert result.grid.depths == (0.0, 1.0)
    assert result.grid.partial == ((1.0, 1.0), (0.0, 0.0))
    assert result.exact[0] == 0.5


def test_a_model_runs_and_the_seed_decides(
    model: nn.Module, compiled: Any, tokenizer: Any, essays: str
) -> None:
    settings: dict[str, Any] = {"lengths": (200,), "depths": 2, "needles": 2, "kinds": ["numbers"]}
    runs = [evaluate.needle(m, tokenizer, essays, **settings) for m in (model, model, compiled(ratio=1))]
    assert runs[0] == runs[1]
    assert runs[0].answers == runs[2].answers
    assert open_reader(model, 1).slots is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": (20,)}, "no room"),
        ({"lengths": (50_000,)}, "haystack has"),
        ({"depths": (1.5,)}, "from 0 to 1"),
        ({"lengths": ()}, "at least one length"),
        ({"kinds": ("colours",)}, "not colours"),
    ],
)
def test_refused(
    model: nn.Module, tokenizer: Any, essays: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.needle(model, tokenizer, essays, **{"lengths": (200,)} | settings)


@pytest.mark.weights
@pytest.mark.skipif(not weights_folder().exists(), reason="run `make weights` first")
def test_smollm2_finds_needles_in_512_tokens() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    settings: dict[str, Any] = {"lengths": (512,), "depths": (0.5,), "needles": 2, "kinds": ["numbers"]}
    whole = evaluate.needle(model, tokenizer, essays_text(), **settings)
    assert whole.partial[0] > 0.7
    recency = evaluate.Bounded(model, evaluate.Method("recency", ratio=8))
    lost = evaluate.needle(recency, tokenizer, essays_text(), **settings)
    assert lost.footprint.slots == 64
    assert lost.exact[0] == 0.0
