"""Soft eviction: gates that say which keys of a lesson a bounded store would still hold."""

from collections.abc import Sequence

import torch

from .gates import log_gate, logistic_noise, thresholds
from .scorer import Scorer
from .suffixes import Lesson


class SoftEviction:
    """`Gates` of a store with `slots` slots per head on average, which has read a lesson's context.

    Each head has a threshold: at the end of the context, the keys above it just fill the slots of its layer.
    With every token, a key's score falls by the head's forgetting. First and newest tokens are always kept.
    """

    def __init__(
        self,
        scorer: Scorer,
        lesson: Lesson,
        scored: Sequence[int],
        slots: int,
        recent: int,
        sinks: int,
        temperature: float,
    ) -> None:
        self._scorer, self._recent, self._sinks, self._temperature = scorer, recent, sinks, temperature
        self._layer = {index: i for i, index in enumerate(scored)}
        self._forgotten = scorer.forgetting.clamp_min(0) / slots
        age = lesson.tokens - 1 - torch.arange(lesson.tokens, device=lesson.ids.device)
        counts = scorer.shares * (slots - recent - sinks)
        counts = counts.clamp(max=0.95 * (lesson.tokens - recent - sinks))
        scores = [scorer(i, lesson.keys[index], lesson.values[index]) for i, index in enumerate(scored)]
        self._scores = self._noisy(torch.stack(scores))  # [L, Hkv, n]
        ranked = self._scores - self._forgotten[..., None] * age
        middle = ranked[..., sinks : lesson.tokens - recent]
        self._thresholds = thresholds(middle, counts[:, None].expand(middle.shape[:-1]), temperature)

    def of_context(self, index: int, distance: torch.Tensor) -> torch.Tensor:
        """The log gates [Hkv, T, n] of the context's keys; see `Gates`."""
        i = self._layer[index]
        sinks = torch.arange(distance.shape[1], device=distance.device) < self._sinks
        return self._gate(i, self._scores[i], distance, (distance < self._recent) | sinks)

    def of_suffixes(
        self, index: int, key: torch.Tensor, value: torch.Tensor, distance: torch.Tensor
    ) -> torch.Tensor:
        """The log gates [Hkv, T, T] of the suffixes' own keys; see `Gates`."""
        i = self._layer[index]
        score = self._noisy(self._scorer(i, key, value))
        return self._gate(i, score, distance, distance < self._recent)

    def _gate(
        self, i: int, score: torch.Tensor, distance: torch.Tensor, always: torch.Tensor
    ) -> torch.Tensor:
        """Log gates [Hkv, T, n] for score [Hkv, n], distance [T, n] and always [T, n]."""
        margin = score[:, None] - self._forgotten[i][:, None, None] * distance
        return log_gate(margin - self._thresholds[i][:, None, None], self._temperature, always)

    def _noisy(self, score: torch.Tensor) -> torch.Tensor:
        return score + logistic_noise(score) * self._temperature
