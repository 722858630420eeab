"""Runs RULER: fits samples to a length in tokens, compresses before the question, scores as published."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....errors import InputError
from ..footprint import Footprint
from ..prompts import Asker, Prompt, answer
from ..spread import mean_and_error
from ..text_reader import Model
from .qa import QA_TASKS, load_qa
from .task import Material, Parts, Task
from .tasks import TASKS


@dataclass(frozen=True)
class RulerSample:
    """One sample of a task: its texts, and the prompt made from them."""

    task: str
    parts: Parts
    prompt: Prompt

    @property
    def tokens(self) -> int:
        """Tokens of context, question and answer; at most the length asked for."""
        return self.prompt.tokens


@dataclass(frozen=True)
class RulerAnswer:
    """One sample's expected outputs, the answer that the model wrote, and its score from 0 to 1."""

    task: str
    tokens: int
    outputs: tuple[str, ...]
    answer: str
    score: float


@dataclass(frozen=True)
class RulerResult:
    """All answers, and the footprint of the longest context."""

    answers: tuple[RulerAnswer, ...]
    length: int
    footprint: Footprint

    @property
    def tasks(self) -> dict[str, tuple[float, float | None]]:
        """Mean score of each task, and its standard error."""
        names = dict.fromkeys(a.task for a in self.answers)
        return {n: mean_and_error([a.score for a in self.answers if a.task == n]) for n in names}

    @property
    def average(self) -> tuple[float, float | None]:
        """The mean of the tasks' means, RULER's figure, and its standard error from those of the tasks."""
        scores = list(self.tasks.values())
        errors = [error for _, error in scores if error is not None]
        error = None if len(errors) < len(scores) else sum(e**2 for e in errors) ** 0.5 / len(scores)
        return sum(mean for mean, _ in scores) / len(scores), error

    @property
    def samples(self) -> int:
        """The number of samples of all tasks."""
        return len(self.answers)

    def measures(self) -> dict[str, tuple[float, float | None]]:
        """See `qfpass.tools.evaluate.report.Result`."""
        return {"average": self.average, **self.tasks}


def string_match_all(answer: str, outputs: Sequence[str]) -> float:
    """RULER's metric: the share of the outputs that occur in the answer, case apart."""
    return sum(output.lower() in answer.lower() for output in outputs) / len(outputs)


def string_match_part(answer: str, outputs: Sequence[str]) -> float:
    """RULER's metric of the QA tasks: 1 if any of the outputs occurs in the answer, case apart."""
    return float(any(output.lower() in answer.lower() for output in outputs))


def ruler(
    model: Model,
    tokenizer: Any,
    essays: str,
    *,
    length: int = 2048,
    tasks: Sequence[str] = tuple(TASKS),
    samples: int = 10,
    chat: bool | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: bool = False,
) -> RulerResult:
    """Run RULER tasks at one length; the context is compressed before the question is seen.

    Args:
        model: see `qfpass.tools.evaluate.open_reader`.
        tokenizer: the model's Hugging Face tokenizer.
        essays: the haystack of most tasks; RULER's are Paul Graham's.
        length: tokens of a prompt, question and answer included.
        tasks: names in `TASKS`, or "qa_1" and "qa_2", whose data sets the package `datasets` must load.
        samples: samples a task.
        chat: see `qfpass.tools.evaluate.Asker`.
        seed: of the samples.
        batch: prompts that run together.

    Raises:
        InputError: an unknown task, a length too small for one, essays too short, a data set not there.
    """
    asker = Asker(tokenizer, chat)
    made = make_samples(asker, essays, length=length, tasks=tasks, samples=samples, seed=seed)
    prompts = [sample.prompt for sample in made]
    written = answer(model, prompts, stops=asker.stops, batch=batch, progress=progress, name="RULER")
    answers = []
    for sample, ids in zip(made, written.ids, strict=True):
        text, outputs = asker.text(ids), sample.parts.outputs
        metric = string_match_part if sample.task in QA_TASKS else string_match_all
        answers.append(RulerAnswer(sample.task, sample.tokens, outputs, text, metric(text, outputs)))
    return RulerResult(tuple(answers), length, written.footprint)


def make_samples(
    asker: Asker, essays: str, *, length: int, tasks: Sequence[str], samples: int, seed: int
) -> list[RulerSample]:
    """`samples` of each task, each as long as fits into `length` tokens with its answer."""
    unknown = sorted(set(tasks) - set(TASKS) - set(QA_TASKS))
    if unknown or not tasks or samples < 1:
        known = ", ".join((*TASKS, *QA_TASKS))
        raise InputError(
            f"RULER: give 1 or more samples of known tasks ({known}), not {samples} of {unknown or tasks}."
        )
    words = tuple(re.sub(r"\s+", " ", essays).strip().split(" "))
    material = Material(words, length, lambda text: len(asker.plain(text)))
    return [
        fit(asker, name, load_qa(name) if name in QA_TASKS else TASKS[name], f"{name} {seed} {i}", material)
        for name in tasks
        for i in range(samples)
    ]


def fit(asker: Asker, name: str, task: Task, seed: str, material: Material) -> RulerSample:
    """The longest sample of `task` for `seed` that has at most `material.length` tokens.

    Raises:
        InputError: the smallest is too long, or the essays end before the length is reached.
    """

    def made(size: int) -> RulerSample:
        parts = task.make(seed, size, material)
        prompt = Prompt(
            asker.context(parts.context), asker.question(parts.question, parts.answer_prefix), task.new_tokens
        )
        return RulerSample(name, parts, prompt)

    smallest, largest = made(task.smallest), task.largest(material)
    if smallest.tokens > material.length:
        raise InputError(
            f"RULER {name}: the smallest sample has {smallest.tokens} tokens, more than the "
            f"{material.length} asked for: give a greater length, or leave the task out."
        )
    low, high = task.smallest, largest + 1
    while high - low > 1:  # tokens grow with the size
        middle = (low + high) // 2
        low, high = (middle, high) if made(middle).tokens <= material.length else (low, middle)
    if task.reads_essays and low == largest:
        raise InputError(
            f"RULER {name}: the essays have {largest} words, too few for {material.length} tokens: give "
            "more text."
        )
    return made(low)
