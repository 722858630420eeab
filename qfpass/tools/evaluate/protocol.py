"""The two protocols: a fixed budget, and a budget of n / ratio for a prompt of n tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...attention.find import find_attentions
from ...capture.export import capture
from ...config import STORE_KINDS
from ...errors import ConfigError
from ...filters import QFilters, TrainedFilters
from ...layer_rules import slots_per_model_slot
from ...model.compiled_decoder import CompiledDecoder
from ...pipeline import compile as compile_model
from ...store.scores import SCORES
from .baselines import BASELINES, Baseline
from .text_reader import Model, TextReader, open_reader

GRAIN = 8  # slots; budgets of n / ratio are rounded up to a multiple, so that like prompts share a compile


@dataclass(frozen=True)
class Method:
    """A score at a budget: one row of a report.

    Attributes:
        score: a name in `qfpass.store.scores.SCORES` or in `qfpass.tools.evaluate.baselines.BASELINES`.
        budget: slots per key/value head, whatever the prompt: the first protocol.
        ratio: instead, a prompt of n tokens gets ceil(n / ratio) slots, up to the next multiple of 8:
            the second protocol.
        recent: newest tokens never evicted; None takes the score's default share of the slots.
        sinks: first tokens never evicted.
        store_dtype: of the stored keys and values: torch.int8, "int8-int4", or None for the model's own. A
            ratio is one of bytes, so fewer bits get more slots.

    Raises:
        ConfigError: an unknown score, or not exactly one of budget and ratio.
    """

    score: str
    budget: int | None = None
    ratio: float | None = None
    recent: int | None = None
    sinks: int = 4
    store_dtype: torch.dtype | str | None = None

    def __post_init__(self) -> None:
        known = (*SCORES, *BASELINES)
        if self.score not in known:
            raise ConfigError(f"score must be one of {', '.join(known)}, not {self.score!r}.")
        if (self.budget is None) == (self.ratio is None):
            raise ConfigError(f"{self.score}: give a budget or a ratio, exactly one of them.")
        if self.store_dtype is not None and self.score in BASELINES:
            raise ConfigError(f"{self.score} runs on the uncompressed model's cache: leave store_dtype out.")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio > 1):
            raise ConfigError(f"ratio must be more than 1, not {self.ratio!r}; 1 is the uncompressed row.")

    def __str__(self) -> str:
        size = f"{self.budget} slots" if self.budget is not None else f"{self.ratio:g}x"
        stored = "" if self.store_dtype is None else " " + str(self.store_dtype).removeprefix("torch.")
        return f"{self.score} {size}{stored}"

    def slots(self, tokens: int, slots_per_model_slot: float = 1.0) -> int:
        """Slots a head for a prompt of `tokens` tokens; so many slots take the bytes of one in its dtype."""
        if self.budget is not None:
            return self.budget
        assert self.ratio is not None
        return math.ceil(math.ceil(tokens * slots_per_model_slot / self.ratio) / GRAIN) * GRAIN


@dataclass
class Bounded:
    """A model under a method, which makes readers with the budget that the method has for a prompt.

    A compiled store's slots are fixed, so every distinct budget is compiled once, for the "eager" backend.

    Attributes:
        model: the original model.
        method: how keys are kept.
        compile_options: further arguments of `qfpass.compile`, such as `filters` or `skip_layers`.
    """

    model: nn.Module
    method: Method
    compile_options: dict[str, Any] = field(default_factory=dict)
    _compiled: dict[int, CompiledDecoder] = field(default_factory=dict, init=False, repr=False)
    _baseline: Baseline | None = field(default=None, init=False, repr=False)

    def reader(self, tokens: int) -> TextReader:
        """A reader for a prompt of `tokens` tokens."""
        method, slots = self.method, self.slots(tokens)
        if method.score in BASELINES:
            self._baseline = self._baseline or Baseline(self.model, method.score)
            return self._baseline.reader(slots, method.recent, method.sinks)
        if slots not in self._compiled:
            self._compiled[slots] = compile_budget(self.model, slots, method, self.compile_options)
        return open_reader(self._compiled[slots], tokens)

    def slots(self, tokens: int) -> int:
        """Slots a head for a prompt of `tokens` tokens."""
        return self.method.slots(tokens, self._slots_a_token)

    @cached_property
    def _slots_a_token(self) -> float:
        if self.method.store_dtype is None or self.method.ratio is None:
            return 1.0
        captured = capture(self.model)
        kind = STORE_KINDS[self.method.store_dtype]
        return slots_per_model_slot(find_attentions(captured, None), captured, kind)


def compile_budget(model: nn.Module, slots: int, method: Method, options: dict[str, Any]) -> CompiledDecoder:
    """`model` with `slots` slots a head, run eagerly and unproven: for evaluation only."""
    settings: dict[str, Any] = {"backend": "eager", "verify": False} | options
    return compile_model(
        model, budget=slots, score=method.score, recent=method.recent, sinks=method.sinks,
        store_dtype=method.store_dtype, **settings,
    )  # fmt: skip


def with_methods(
    model: nn.Module,
    methods: list[Method],
    compile_options: dict[str, Any] | None = None,
    filters: Sequence[QFilters | TrainedFilters] = (),
) -> dict[str, Model]:
    """The models to compare, by name: the uncompressed model first, then the model under each method.

    A method uses the last of `filters` that were made for its score.
    """
    rows: dict[str, Model] = {"uncompressed": model}
    for method in methods:
        options = dict(compile_options or {})
        fitting = [each for each in filters if each.score == method.score]
        if fitting:
            options["filters"] = fitting[-1]
        rows[str(method)] = Bounded(model, method, options)
    return rows
