"""Attention of texts that go on from a context, over the context's keys and their own, gated or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..graph.attention import Attention
from .gates import gated_attention


@dataclass(frozen=True)
class Lesson:
    """Texts that go on from one context of n tokens, each as if the others weren't there.

    Attributes:
        context: [n] token ids.
        keys, values: per attention [1, Hkv, n, .], as the full model made them.
        ids, positions: [T] of all suffixes, one behind the other.
        apart: [T, T] bool, True where a token must not see another: it is later, or of another suffix.
        asked: [T] bool, tokens that predict an answer; the others count as continuation if `follows`.
        follows: [T] bool, tokens that predict the continuation.
        expected: [counted, V] log-probabilities of the full model at the tokens that count.
    """

    context: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    ids: torch.Tensor
    positions: torch.Tensor
    apart: torch.Tensor
    asked: torch.Tensor
    follows: torch.Tensor
    expected: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens of the context."""
        return len(self.context)


class Gates(Protocol):
    """How open the gates of a lesson's keys are, as logarithms."""

    def of_context(self, index: int, distance: torch.Tensor) -> torch.Tensor:
        """distance [T, n] of the context's keys from each suffix token -> [Hkv, T, n]."""

    def of_suffixes(
        self, index: int, key: torch.Tensor, value: torch.Tensor, distance: torch.Tensor
    ) -> torch.Tensor:
        """key and value [1, Hkv, T, .] of the suffixes, distance [T, T] -> [Hkv, T, T]."""


class SuffixAttention:
    """`attend` for `Reader.read` on a lesson's suffixes; every gate is open where there are no `gates`."""

    def __init__(self, lesson: Lesson, attentions: Sequence[Attention], gates: Gates | None = None) -> None:
        self._lesson, self._attentions, self._gates = lesson, attentions, gates
        here = lesson.positions[:, None]
        self._to_context = here - torch.arange(lesson.tokens, device=here.device)
        self._to_suffixes = here - lesson.positions

    def __call__(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """query [1, Hq, T, D], key and value [1, Hkv, T, .] of the suffixes -> [1, Hq, T, Dv]."""
        attention, lesson = self._attentions[index], self._lesson
        reach = attention.span.reach
        if self._gates is not None and reach is None:
            past = self._gates.of_context(index, self._to_context)
            own = self._gates.of_suffixes(index, key, value, self._to_suffixes)
        else:
            past = self._within(reach, self._to_context, key.shape[1])
            own = self._within(reach, self._to_suffixes, key.shape[1])
        own = own.masked_fill(lesson.apart, float("-inf"))
        keys = torch.cat([lesson.keys[index].to(key.dtype), key], dim=2)
        values = torch.cat([lesson.values[index].to(value.dtype), value], dim=2)
        return gated_attention(query, keys, values, torch.cat([past, own], -1), attention.scale)

    def _within(self, reach: int | None, distance: torch.Tensor, heads: int) -> torch.Tensor:
        open_gates = torch.zeros(distance.shape, device=distance.device)
        if reach is not None:
            open_gates = open_gates.masked_fill(distance >= reach, float("-inf"))
        return open_gates.expand(heads, -1, -1)
