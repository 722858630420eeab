"""RULER's two QA tasks: questions on SQuAD and HotpotQA, their documents hidden among others.

They exist only where the package `datasets` is installed and can load the data set.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from ....errors import InputError
from ....filters.hub import UNAVAILABLE
from .task import Material, Parts, Task

QA_TASKS = {
    "qa_1": ("rajpurkar/squad_v2", None),
    "qa_2": ("hotpotqa/hotpot_qa", "distractor"),
}
INSTRUCTION = (
    "The documents hold the answer to a question. Reply with that answer alone, in as few words as it takes."
)


@dataclass(frozen=True)
class QaQuestion:
    """A question, its accepted answers, the documents that hold them, and related ones (`near`)."""

    query: str
    outputs: tuple[str, ...]
    documents: tuple[str, ...]
    near: tuple[str, ...] = ()


@cache
def load_qa(name: str) -> Task:
    """The task "qa_1" or "qa_2".

    Raises:
        InputError: the package `datasets` is not installed, or it can't load the data set.
    """
    repository, subset = QA_TASKS[name]
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"RULER {name} needs the package datasets to load {repository}: pip install datasets, or leave "
            "the task out."
        ) from None
    failures: tuple[type[Exception], ...] = (*UNAVAILABLE, ValueError)  # ValueError: offline, not cached
    try:
        rows = datasets.load_dataset(repository, subset, split="validation")
    except failures as error:
        raise InputError(
            f"RULER {name} needs the data set {repository}, which can't be loaded ({error}): connect to the "
            "hub, or leave the task out."
        ) from error
    questions = _squad(rows) if name == "qa_1" else _hotpot(rows)
    documents = sorted({document for q in questions for document in (*q.documents, *q.near)})
    return _task(questions, documents)


def _squad(rows: Iterable[Any]) -> list[QaQuestion]:
    rows = list(rows)
    of_title: dict[str, dict[str, None]] = {}
    for row in rows:
        of_title.setdefault(row["title"], {})[row["context"]] = None
    return [
        QaQuestion(
            row["question"],
            tuple(row["answers"]["text"]),
            (row["context"],),
            tuple(d for d in of_title[row["title"]] if d != row["context"]),
        )
        for row in rows
        if row["answers"]["text"]
    ]


def _hotpot(rows: Iterable[Any]) -> list[QaQuestion]:
    return [
        QaQuestion(
            row["question"],
            (row["answer"],),
            tuple(
                f"{title}\n{''.join(sentences)}"
                for title, sentences in zip(row["context"]["title"], row["context"]["sentences"], strict=True)
            ),
        )
        for row in rows
    ]


def _task(questions: list[QaQuestion], documents: list[str]) -> Task:
    def make(seed: str, size: int, material: Material) -> Parts:
        """`size` documents beside those of the question: near ones first, then any."""
        random = Random(seed)
        asked = random.choice(questions)
        own = {*asked.documents, *asked.near}
        near = random.sample(asked.near, len(asked.near))
        others = random.sample([d for d in documents if d not in own], len(documents) - len(own))
        shown = [*asked.documents, *[*near, *others][:size]]
        random.shuffle(shown)
        text = "\n\n".join(f"Document {i}:\n{document}" for i, document in enumerate(shown, 1))
        context = f"{INSTRUCTION}\n\n{text}\n\n"
        return Parts(context, f"{INSTRUCTION}\n\nQuestion: {asked.query}", "Answer:", asked.outputs)

    return Task(make, new_tokens=32, smallest=0, largest=lambda material: len(documents))
