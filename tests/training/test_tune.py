"""qfpass.tune on a tiny model: filters without data, found by compile, and a tuning that goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from characters import CharacterTokenizer
from tiny import FAMILIES, FORMS

import qfpass
from qfpass.errors import ConfigError, FilterFileError, UnsupportedOpError
from qfpass.training import descent, lessons, self_texts, tune

SETTINGS: dict[str, Any] = {"steps": 12, "lessons": 2, "progress": False}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path))
    monkeypatch.setattr(lessons, "FACTS", 1)
    monkeypatch.setattr(tune, "CONTINUATION", 20)
    monkeypatch.setattr(tune, "ROWS", 3)
    monkeypatch.setattr(tune, "TOKENS", 120)
    monkeypatch.setattr(tune, "LENGTHS", (150,))
    monkeypatch.setattr(tune, "SUFFIX", 60)
    monkeypatch.setattr(descent, "SAVED_EVERY", 2)
    short = {kind: tuple(text[:40] for text in texts) for kind, texts in self_texts.OPENINGS.items()}
    monkeypatch.setattr(self_texts, "OPENINGS", short)


def model_of(**sizes: Any) -> torch.nn.Module:
    return FAMILIES["llama"](vocab=CharacterTokenizer.vocabulary, **sizes)


def test_compile_finds_what_was_tuned(tmp_path: Path) -> None:
    model = model_of()
    filters = qfpass.tune(model, CharacterTokenizer(), **SETTINGS)
    assert filters.source["data"] == "3 x 120 tokens that the model wrote itself"
    compiled = qfpass.compile(model, budget=24, context_length=150, backend="eager")
    assert {site.score for site in qfpass.report(compiled).sites} == {"trained"}
    named = qfpass.compile(model, budget=24, context_length=150, backend="eager", score="recency")
    assert {site.score for site in qfpass.report(named).sites} == {"recency"}
    assert not list((tmp_path / "tuning").iterdir())  # nothing is left of the work
    with pytest.raises(ConfigError, match=r"call qfpass.tune once"):
        qfpass.compile(model_of(seed=1), budget=24, context_length=150, backend="eager", score="trained")


def test_an_interrupted_tuning_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The texts aren't written again, and the filters are those of a tuning that nothing interrupted."""
    whole = qfpass.tune(model_of(), CharacterTokenizer(), **SETTINGS)
    take_step, steps = descent.Descent._take_step, []

    def interrupted(self: descent.Descent, course: Any) -> None:
        steps.append(self)
        if len(steps) == 8:
            raise KeyboardInterrupt
        take_step(self, course)

    monkeypatch.setattr(descent.Descent, "_take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qfpass.tune(model_of(), CharacterTokenizer(), **SETTINGS)
    (folder,) = (tmp_path / "tuning").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "texts.json",
        "training.pt",
        "lesson-0.pt",
        "lesson-1.pt",
    }
    monkeypatch.setattr(descent.Descent, "_take_step", take_step)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("texts and lessons are there already")

    monkeypatch.setattr(tune, "write_text", refused)
    monkeypatch.setattr(lessons.Teacher, "lesson", refused)
    again = qfpass.tune(model_of(), CharacterTokenizer(), **SETTINGS)
    assert again.shares == whole.shares
    for mine, wanted in zip(again.filters, whole.filters, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing should be written")

    monkeypatch.setattr(tune, "write_text", refused)
    with pytest.raises(ConfigError, match="ratio above 1"):
        qfpass.tune(model_of(), CharacterTokenizer(), ratio=1)
    with pytest.raises(UnsupportedOpError, match="filters can't be trained"):
        qfpass.tune(FORMS["gemma2"](vocab=128), CharacterTokenizer())
    monkeypatch.setattr(tune, "LENGTHS", (1024,))
    with pytest.raises(ConfigError, match="context of at least"):
        qfpass.tune(model_of(), CharacterTokenizer())


def test_lessons_that_find_no_space_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FilterFileError, match=r"lessons can't be written.*QFPASS_CACHE"):
        qfpass.tune(model_of(), CharacterTokenizer(), **SETTINGS)
