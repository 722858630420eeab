"""How a row's next token is chosen: transformers' own logits processors, and a generator for each row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the names are those of `generate` and of OpenAI's API.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: 0 for all tokens.
        logit_bias: a number for each token id, added to its logit.
        seed: of the row's own generator; None for a random one.

    Raises:
        InputError: a number is outside of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("temperature", 0, 100), ("top_p", 0, 1), ("top_k", 0, 2**31), ("min_p", 0, 1),
            ("repetition_penalty", 0.01, 100), ("frequency_penalty", -2, 2), ("presence_penalty", -2, 2),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise InputError(f"{name} must lie between {least} and {most}, not be {value!r}.")
        if self.top_p == 0:
            raise InputError("top_p must be greater than 0: for the likeliest token set temperature to 0.")
        if not all(math.isfinite(bias) for bias in self.logit_bias.values()):
            raise InputError("logit_bias must hold finite numbers.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed must be an integer of 64 bits, not {self.seed}.")


class Sampler:
    """Chooses the tokens of one row, which has read `ids` so far."""

    def __init__(self, sampling: Sampling, ids: list[int]) -> None:
        self._sampling, self._prompt_tokens, self._ids = sampling, len(ids), list(ids)
        self._processors: LogitsProcessorList | None = None
        self._generator: torch.Generator | None = None

    @torch.no_grad()
    def choose(self, logits: torch.Tensor) -> int:
        """The next token after logits [V]; it counts as read from then on."""
        if self._processors is None:
            self._processors = self._make_processors(logits.device)
        scores = logits[None].float()
        if len(self._processors):
            ids: Any = torch.tensor([self._ids], device=logits.device)
            scores = self._processors(ids, scores)
        if self._sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=self._seeded(logits.device))
            token = int(drawn)
        self._ids.append(token)
        return token

    def _seeded(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return self._generator

    def _make_processors(self, device: torch.device) -> LogitsProcessorList:
        """In the order in which `generate` applies them."""
        asked, made = self._sampling, LogitsProcessorList()
        if asked.logit_bias:
            biases: Any = {(token,): bias for token, bias in asked.logit_bias.items()}
            made.append(SequenceBiasLogitsProcessor(biases))
        if asked.repetition_penalty != 1:
            made.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
        if asked.frequency_penalty or asked.presence_penalty:
            made.append(_CountPenalty(self._prompt_tokens, asked.frequency_penalty, asked.presence_penalty))
        if asked.temperature == 0:
            return made
        if asked.temperature != 1:
            made.append(TemperatureLogitsWarper(asked.temperature))
        if asked.top_k:
            made.append(TopKLogitsWarper(asked.top_k))
        if asked.top_p < 1:
            made.append(TopPLogitsWarper(asked.top_p))
        if asked.min_p > 0:
            made.append(MinPLogitsWarper(asked.min_p))
        return made


class _CountPenalty(LogitsProcessor):
    """OpenAI's two penalties, which transformers hasn't: by how often the answer has a token, and whether."""

    def __init__(self, prompt_tokens: int, frequency: float, presence: float) -> None:
        self._prompt_tokens, self._frequency, self._presence = prompt_tokens, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self._prompt_tokens :], minlength=scores.shape[-1])
        return scores - self._frequency * counts - self._presence * (counts > 0)
