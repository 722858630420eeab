"""Attention of a lesson's suffixes over the context's keys and their own, with or without gates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.checkpoint import checkpoint

from ..attention.find import Attention
from .gates import gated_attention


@dataclass(frozen=True)
class Lesson:
    """A context of n tokens and several suffixes, each of which follows the context by itself.

    Attributes:
        context: [n] token ids.
        keys, values: per attention [1, Hkv, n, .], computed by the full model.
        ids, positions: [T] of all suffixes, concatenated.
        apart: [T, T] bool, True where a token must not see another, which is later or in another suffix.
        asked: [T] bool, True for tokens that predict an answer.
        follows: [T] bool, True for tokens that predict the continuation.
        expected: [counted, V] the full model's log-probabilities at tokens in `asked` or `follows`.
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
        """The number of tokens in the context."""
        return len(self.context)


class Gates(Protocol):
    """The logs of the gates of a lesson's keys."""

    def of_context(self, index: int, distance: torch.Tensor) -> torch.Tensor:
        """Log gates [Hkv, T, n] of the context's keys, `distance` [T, n] tokens before each suffix token."""

    def of_suffixes(
        self, index: int, key: torch.Tensor, value: torch.Tensor, distance: torch.Tensor
    ) -> torch.Tensor:
        """Log gates [Hkv, T, T] of the suffixes' key and value [1, Hkv, T, .] at `distance` [T, T]."""


class SuffixAttention:
    """The `attend` that `AttendWith.read` takes, for a lesson's suffixes; without `gates` all are open."""

    def __init__(self, lesson: Lesson, attentions: Sequence[Attention], gates: Gates | None = None) -> None:
        self._lesson, self._attentions, self._gates = lesson, attentions, gates
        here = lesson.positions[:, None]
        self._to_context = here - torch.arange(lesson.tokens, device=here.device)
        self._to_suffixes = here - lesson.positions

    def __call__(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Output [1, Hq, T, Dv] for the suffixes' query [1, Hq, T, D], key and value [1, Hkv, T, .].

        Its logits are computed again for the gradients: those of all layers would take gigabytes.
        """
        if not torch.is_grad_enabled():
            return self._attend(index, query, key, value)
        out: torch.Tensor = checkpoint(self._attend, index, query, key, value, use_reentrant=False)
        return out

    def _attend(
        self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
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
        return gated_attention(query, keys, values, torch.cat([past, own], -1), attention.form.scale)

    def _within(self, reach: int | None, distance: torch.Tensor, heads: int) -> torch.Tensor:
        """Log gates [Hkv, T, n]: 0 within a window of `reach` tokens, -inf beyond it."""
        open_gates = torch.zeros(distance.shape, device=distance.device)
        if reach is not None:
            open_gates = open_gates.masked_fill(distance >= reach, float("-inf"))
        return open_gates.expand(heads, -1, -1)
