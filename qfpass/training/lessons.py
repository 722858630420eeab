"""Makes lessons: a context's keys and values, suffixes of it, and the full model's predictions for them."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch.nn import functional as F

from ..attention.find import Attention
from ..errors import InputError
from . import facts
from .attend_with import AttendWith
from .suffixes import Lesson, SuffixAttention

FACTS = 8  # per context


class Teacher:
    """Makes lessons from texts with the uncompressed model.

    Args:
        continuation: tokens with which a text goes on after a lesson's context.
        suffix: tokens of continuation and questions together, at most.
    """

    def __init__(
        self,
        reader: AttendWith,
        attentions: Sequence[Attention],
        tokenizer: Any,
        device: torch.device,
        continuation: int,
        suffix: int,
    ) -> None:
        self._reader, self._attentions, self._tokenizer = reader, attentions, tokenizer
        self._device, self._continuation, self._suffix = device, continuation, suffix

    @torch.no_grad()
    def lesson(self, text: list[int], length: int, random: Random) -> Lesson:
        """A lesson on a random piece of `text`: a context of `length` tokens with facts in it, and suffixes.

        The suffixes are the text's continuation and questions about the facts.

        Raises:
            InputError: the text is shorter than `length` and the continuation together.
        """
        spare = len(text) - length - self._continuation
        if spare < 0:
            raise InputError(
                f"a text of {len(text)} tokens is too short for a lesson of {length + self._continuation}: "
                "give longer texts, or a smaller length."
            )
        start = random.randrange(spare + 1)
        invented = [facts.invent(random) for _ in range(FACTS)]
        context = facts.insert(self._tokenizer, text[start:], invented, random, length)
        used = length - sum(len(facts.sentence_ids(self._tokenizer, fact)) for fact in invented)
        continuation = text[start + used :][: self._continuation + 1]
        keys, values = self._read_context(context)
        questions = [q for q in (facts.ask(self._tokenizer, fact) for fact in invented) if q]
        random.shuffle(questions)
        return self._with_suffixes(context, keys, values, questions, continuation)

    def _read_context(self, ids: list[int]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        kept = dict[int, tuple[torch.Tensor, torch.Tensor]]()

        def attend(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            kept[index] = key, value
            attention = self._attentions[index]
            reach = attention.span.reach
            mask = None if reach is None else _within(reach, key.shape[2], key.device)
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=attention.form.scale,
                enable_gqa=True,
            )  # fmt: skip

        self._reader.read_keys(*self._placed(ids, 0), attend)
        keys, values = zip(*(kept[a.index] for a in self._attentions), strict=True)
        return keys, values

    def _with_suffixes(
        self,
        context: list[int],
        keys: tuple[torch.Tensor, ...],
        values: tuple[torch.Tensor, ...],
        questions: Sequence[facts.Question],
        continuation: list[int],
    ) -> Lesson:
        blocks = [(continuation[:-1], len(continuation) - 1)]
        for question in questions:
            ids = question.asked + question.answer
            if sum(len(b) for b, _ in blocks) + len(ids) <= self._suffix:
                blocks.append((ids[:-1], len(question.answer)))
        device, total = self._device, sum(len(ids) for ids, _ in blocks)
        apart = torch.ones(total, total, dtype=torch.bool, device=device)
        asked = torch.zeros(total, dtype=torch.bool, device=device)
        follows = torch.zeros_like(asked)
        before = torch.tensor(context, device=device)
        start = 0
        for number, (ids, counted) in enumerate(blocks):
            end = start + len(ids)
            apart[start:end, start:end] = apart[start:end, start:end].triu(1)
            (asked if number else follows)[end - counted : end] = True
            start = end
        tokens = torch.tensor([i for block, _ in blocks for i in block], device=device)
        positions = torch.cat([torch.arange(len(b), device=device) for b, _ in blocks]) + len(context)
        lesson = Lesson(before, keys, values, tokens, positions, apart, asked, follows, torch.empty(0))
        logits = self._reader.read(tokens, positions, SuffixAttention(lesson, self._attentions))
        expected = logits[asked | follows].float().log_softmax(-1)
        return Lesson(
            before, keys, values, tokens, positions, apart, asked, follows, expected.to(torch.float16)
        )

    def _placed(self, ids: list[int], start: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.tensor(ids, device=self._device)
        return tokens, torch.arange(start, start + len(ids), device=self._device)


def long_enough(texts: Sequence[list[int]], length: int, continuation: int) -> list[list[int]]:
    """The texts (token ids) long enough that lessons of `length` tokens can start at several places.

    Raises:
        InputError: no text is long enough.
    """
    needed = max(int(1.25 * length), length + continuation)
    found = [ids for ids in texts if len(ids) > needed]
    if not found:
        longest = max(map(len, texts), default=0)
        raise InputError(
            f"a lesson of {length} tokens needs a text of more than {needed}, and the longest has {longest}: "
            "give longer texts, or smaller lengths."
        )
    return found


def _within(reach: int, length: int, device: torch.device) -> torch.Tensor:
    """The causal mask [S, S] of a window of `reach` tokens, True where a key is seen."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < reach)
