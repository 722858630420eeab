"""Prompts in two parts: a context, compressed before anything is asked, and the question."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InputError
from .footprint import Footprint
from .progress import told
from .text_reader import Model, open_reader

MARK = "\u241e context \u241e"  # stands for the context while a chat template is cut in two


@dataclass(frozen=True)
class Prompt:
    """Token ids of a context and of a question, and how many tokens the answer may have."""

    context: tuple[int, ...]
    question: tuple[int, ...]
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of context, question and answer together."""
        return len(self.context) + len(self.question) + self.new_tokens


class Asker:
    """Turns texts into prompts, in the model's chat format where its tokenizer has one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat: wrap in the tokenizer's chat template; None does so if there is one.

    Raises:
        InputError: chat=True without a template, or a template that changes the text.
    """

    def __init__(self, tokenizer: Any, chat: bool | None = None) -> None:
        self.tokenizer = tokenizer
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise InputError("chat=True, but the tokenizer has no chat template: leave chat out.")
        self.chat = has_template if chat is None else chat
        self._before, self._after = self._cut_template() if self.chat else ("", "")

    def context(self, text: str) -> tuple[int, ...]:
        """Token ids of a context, the start of a prompt, with special tokens."""
        return self._ids(self._before + text, special=not self.chat)

    def question(self, text: str, answer_prefix: str = "") -> tuple[int, ...]:
        """Token ids of a question that follows a context, and of the words that the answer begins with."""
        # In a chat the answer begins a turn; else it goes on behind the question.
        begin = answer_prefix if self.chat or not answer_prefix else f" {answer_prefix}"
        return self._ids(text + self._after + begin, special=False)

    def plain(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without special tokens or chat format."""
        return self._ids(text, special=False)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer: every special token."""
        return frozenset(self.tokenizer.all_special_ids)

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        # verbose: no warning that a text is longer than the model's context.
        return tuple(self.tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _cut_template(self) -> tuple[str, str]:
        turn = [{"role": "user", "content": MARK}]
        whole = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, found, after = whole.partition(MARK)
        if not found:
            raise InputError("the chat template changes what it is given: pass chat=False.")
        return before, after


@dataclass(frozen=True)
class Answers:
    """Token ids of each prompt's answer, and the footprint of the longest context."""

    ids: tuple[tuple[int, ...], ...]
    footprint: Footprint


def answer(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    stops: Iterable[int] = (),
    batch: int = 8,
    progress: bool = False,
    name: str = "answering",
) -> Answers:
    """Greedy answers: the model reads and compresses a context, reads the question, then writes the answer.

    Prompts with contexts and questions of equal lengths run together, up to `batch` of them.
    """
    given: dict[int, tuple[int, ...]] = {}
    footprint = Footprint(None, 0)
    with told(name, len(prompts), progress) as wait:
        for group in _groups(prompts, batch):
            rows = [prompts[i] for i in group]
            ids, held = _answer_rows(model, rows, frozenset(stops))
            given.update(zip(group, ids, strict=True))
            footprint = max(footprint, held, key=lambda f: f.nbytes)
            wait.advance(len(group))
    return Answers(tuple(given[i] for i in range(len(prompts))), footprint)


def _groups(prompts: Sequence[Prompt], batch: int) -> Iterator[list[int]]:
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        alike[len(prompt.context), len(prompt.question)].append(i)
    for indices in alike.values():
        for start in range(0, len(indices), batch):
            yield indices[start : start + batch]


def _answer_rows(
    model: Model, rows: Sequence[Prompt], stops: frozenset[int]
) -> tuple[list[tuple[int, ...]], Footprint]:
    context = torch.tensor([row.context for row in rows])
    reader = open_reader(model, context.shape[1])
    reader.prefill(context)
    footprint = reader.footprint
    logits = reader.read(torch.tensor([row.question for row in rows]), keep=1)
    answers: list[list[int]] = [[] for _ in rows]
    running = set(range(len(rows)))
    while running:
        token = logits[:, -1].argmax(-1)
        for i, chosen in enumerate(token.tolist()):
            if i in running and chosen in stops:
                running.remove(i)
            elif i in running:
                answers[i].append(chosen)
                if len(answers[i]) == rows[i].new_tokens:
                    running.remove(i)
        if running:
            logits = reader.read(token[:, None], keep=1)
    return [tuple(ids) for ids in answers], footprint
