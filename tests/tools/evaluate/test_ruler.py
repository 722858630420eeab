"""RULER's run and metrics."""

import math
from typing import Any

import pytest
from torch import nn

from qfpass.tools import evaluate
from qfpass.tools.evaluate.footprint import Footprint
from qfpass.tools.evaluate.prompts import Asker
from qfpass.tools.evaluate.ruler_benchmark.run import (
    RulerAnswer,
    RulerResult,
    make_samples,
    string_match_all,
    string_match_part,
)


def test_string_match_all_counts_outputs() -> None:
    assert string_match_all("They are ABC and def.", ["abc", "DEF"]) == 1.0
    assert string_match_all("They are ABC.", ["abc", "DEF"]) == 0.5
    assert string_match_all("", ["abc"]) == 0.0


def test_string_match_part_wants_any_output() -> None:
    assert string_match_part("It is ABC.", ["xyz", "abc"]) == 1.0
    assert string_match_part("It is", ["xyz", "abc"]) == 0.0


def test_the_average_is_over_tasks() -> None:
    scores = {"a": [1.0, 0.0, 1.0, 0.0], "b": [0.25, 0.75]}
    answers = [RulerAnswer(task, 9, ("x",), "", s) for task, each in scores.items() for s in each]
    result = RulerResult(tuple(answers), 9, Footprint(None, 0))
    assert result.tasks["a"][0] == 0.5
    assert result.tasks["a"][1] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert result.tasks["b"] == (0.5, pytest.approx(0.25))
    assert result.average == (0.5, pytest.approx(math.sqrt((1 / 3) / 4 + 0.25**2) / 2))


def test_a_model_runs_and_a_bounded_one_stays_bounded(
    model: nn.Module, compiled: Any, tokenizer: Any, essays: str
) -> None:
    settings: dict[str, Any] = {"length": 700, "tasks": ("niah_single_1", "fwe"), "samples": 1}
    plain = evaluate.ruler(model, tokenizer, essays, **settings)
    assert plain.answers == evaluate.ruler(compiled(ratio=1), tokenizer, essays, **settings).answers
    assert set(plain.tasks) == {"niah_single_1", "fwe"}
    assert all(a.tokens <= 700 and a.score == string_match_all(a.answer, a.outputs) for a in plain.answers)
    bounded = evaluate.ruler(compiled(budget=64), tokenizer, essays, **settings)
    assert bounded.footprint.slots == 64
    samples = make_samples(Asker(tokenizer), essays, seed=0, **settings)
    longest = max(len(sample.prompt.context) for sample in samples)
    assert plain.footprint.nbytes * 64 == bounded.footprint.nbytes * longest
