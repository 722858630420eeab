"""Soft eviction of one lesson: which keys a bounded store would still hold, as gates."""

from collections.abc import Sequence

import torch

from .gates import log_gate, logistic_noise, thresholds
from .scorer import Scorer
from .suffixes import Lesson


class SoftEviction:
    """Gates of a store of `slots` slots a head on average, after a lesson's context.

    A head's threshold is that above which its keys fill its layer's slots once the context has been read;
    from there on a key falls behind by what its head forgets a token. Sinks and newest tokens stay.
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
        """See `Gates`."""
        i = self._layer[index]
        sinks = torch.arange(distance.shape[1], device=distance.device) < self._sinks
        return self._gate(i, self._scores[i], distance, (distance < self._recent) | sinks)

    def of_suffixes(
        self, index: int, key: torch.Tensor, value: torch.Tensor, distance: torch.Tensor
    ) -> torch.Tensor:
        """See `Gates`."""
        i = self._layer[index]
        score = self._noisy(self._scorer(i, key, value))
        return self._gate(i, score, distance, distance < self._recent)

    def _gate(
        self, i: int, score: torch.Tensor, distance: torch.Tensor, always: torch.Tensor
    ) -> torch.Tensor:
        """score [Hkv, n], distance and always [T, n] -> [Hkv, T, n]."""
        margin = score[:, None] - self._forgotten[i][:, None, None] * distance
        return log_gate(margin - self._thresholds[i][:, None, None], self._temperature, always)

    def _noisy(self, score: torch.Tensor) -> torch.Tensor:
        return score + logistic_noise(score) * self._temperature
