"""RULER's QA tasks on data sets of the test's own, and their absence."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qfpass.errors import InputError
from qfpass.tools.evaluate.prompts import Asker
from qfpass.tools.evaluate.ruler_benchmark.qa import INSTRUCTION, load_qa
from qfpass.tools.evaluate.ruler_benchmark.run import make_samples

SQUAD = [
    {
        "title": f"title {i // 4}",
        "context": f"Document number {i} tells that thing {i} is colour{i}.",
        "question": f"What is thing {i}?",
        "answers": {"text": [f"colour{i}"] if i % 5 else []},
    }
    for i in range(40)
]
HOTPOT = [
    {
        "question": f"Where is place {i}?",
        "answer": f"land{i}",
        "context": {
            "title": [f"Place {i}", f"Land {i}"],
            "sentences": [["It is ", f"in land{i}."], ["Big."]],
        },
    }
    for i in range(40)
]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A package `datasets` that holds what the test puts into it."""
    held: dict[str, Any] = {"rajpurkar/squad_v2": SQUAD, "hotpotqa/hotpot_qa": HOTPOT}

    def load_dataset(name: str, subset: str | None, split: str) -> Any:
        if isinstance(held[name], Exception):
            raise held[name]
        return held[name]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    load_qa.cache_clear()
    yield held
    load_qa.cache_clear()


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_the_documents_with_the_answer_are_among_others(
    datasets: dict[str, Any], tokenizer: Any, essays: str, task: str
) -> None:
    asker = Asker(tokenizer)
    samples = make_samples(asker, essays, length=900, tasks=[task], samples=5, seed=0)
    assert samples == make_samples(asker, essays, length=900, tasks=[task], samples=5, seed=0)
    assert len({s.parts.question for s in samples}) > 1
    for sample in samples:
        assert 800 < sample.tokens <= 900
        assert all(output in sample.parts.context for output in sample.parts.outputs)
        assert sample.parts.context.startswith(INSTRUCTION)
        assert "Document 1:\n" in sample.parts.context and "Document 5:\n" in sample.parts.context


def test_squad_leaves_out_what_has_no_answer(datasets: dict[str, Any], tokenizer: Any, essays: str) -> None:
    samples = make_samples(Asker(tokenizer), essays, length=900, tasks=["qa_1"], samples=30, seed=1)
    assert all(sample.parts.outputs for sample in samples)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    load_qa.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="package datasets"):
        load_qa("qa_1")


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("not cached")])
def test_without_the_data(datasets: dict[str, Any], error: Exception) -> None:
    datasets["hotpotqa/hotpot_qa"] = error
    with pytest.raises(InputError, match=f"hotpotqa/hotpot_qa.*{error}"):
        load_qa("qa_2")
