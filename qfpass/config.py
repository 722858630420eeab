"""The settings of one compile, validated once."""

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .errors import ConfigError
from .filters import QFilters, TrainedFilters
from .store.scores import SCORES
from .switches import Switches

DEFAULT_CHUNK = 512
# Stores of so few slots are read into token by token: a graph for chunks of any length takes each length for
# less than the slots.
SLOTS_WITHOUT_CHUNKS = 3
_OF_TORCH_COMPILE = frozenset(inspect.signature(torch.compile).parameters) - {"model"}
OVERFLOWS = ("error", "continue", "rerotate")


@dataclass(frozen=True)
class Config:
    """What `qfpass.compile` was asked for.

    Attributes:
        ratio: how many times smaller than the full cache the store is; slots = ceil(context_length / ratio),
            more of them if they take fewer bytes than a token of the full cache. 1 keeps every key.
        budget: slots per key/value head, said directly instead of `ratio`.
        context_length: tokens that a session may see; None takes the model's own.
        recent: newest tokens that are never evicted; None takes the score's own part of the slots: for
            the published a half, for the trained an eighth of few to half of many, else a quarter.
        sinks: first tokens that are never evicted (Xiao et al. 2023, arXiv 2309.17453).
        score: which key goes first, a name in `qfpass.store.scores.SCORES`; None takes the filters' own,
            "published" without any.
        store_dtype: of the stored keys and values, but for windows and `skip_layers`: None, the model's own,
            or torch.int8.
        chunk: tokens read at a time from a prompt; None takes 512, or slots - 1 if fewer.
        filters: Q-Filters or trained filters, or a folder or hub repository of them; None finds or makes
            Q-Filters that fit.
        skip_layers: attention sites, counted from 0, that keep every key.
        overflow: what happens to a text longer than `context_length`: "error" refuses it, "continue" lets
            positions go on, "rerotate" moves the stored keys to earlier positions so that they stay in range.
        compact_weights: keep copies of float32 weights in fewer bits that hold exactly their numbers, for a
            processor's steps to read; by Inductor only.
        backend: "inductor", "eager" or any other torch.compile backend, by name or callable.
        verify: prove the rewritten graph against the original before returning.
        switches: which optimisations are used, less what the environment variable QFPASS_OFF turns off.
        compile_options: further keyword arguments for torch.compile (`mode`, `options`).
    """

    ratio: float | None = None
    budget: int | None = None
    context_length: int | None = None
    recent: int | None = None
    sinks: int = 4
    score: str | None = None
    store_dtype: torch.dtype | None = None
    chunk: int | None = None
    filters: QFilters | TrainedFilters | str | Path | None = None
    skip_layers: tuple[int, ...] = ()
    overflow: str = "error"
    compact_weights: bool = False
    backend: Any = "inductor"
    verify: bool = True
    switches: Switches = Switches()
    compile_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ratio is not None and self.budget is not None:
            raise ConfigError("ratio and budget both size the store: give one of them.")
        if self.ratio is not None:
            _require_number("ratio", self.ratio)
            if not (math.isfinite(self.ratio) and self.ratio >= 1):
                raise ConfigError(f"ratio must be a number of at least 1, not {self.ratio!r}.")
        _require_int("sinks", self.sinks, least=0)
        for name, least in (("budget", 2), ("context_length", 2), ("recent", 1), ("chunk", 2)):
            if getattr(self, name) is not None:
                _require_int(name, getattr(self, name), least)
        if self.score is not None and self.score not in SCORES:
            raise ConfigError(f"score must be one of {', '.join(SCORES)}, not {self.score!r}.")
        if self.store_dtype not in (None, torch.int8):
            raise ConfigError(
                f"store_dtype must be torch.int8, or None for the model's own, not {self.store_dtype!r}."
            )
        if self.overflow not in OVERFLOWS:
            raise ConfigError(f"overflow must be one of {', '.join(OVERFLOWS)}, not {self.overflow!r}.")
        if self.filters is not None and not isinstance(self.filters, (QFilters, TrainedFilters, str, Path)):
            raise ConfigError(
                "filters must be QFilters or TrainedFilters, a folder or a hub repository's name, "
                f"not {type(self.filters).__name__}."
            )
        if not isinstance(self.switches, Switches):
            raise ConfigError(f"switches must be qfpass.Switches(...), not {self.switches!r}.")
        object.__setattr__(self, "switches", self.switches.without_those_of_environment())
        object.__setattr__(self, "skip_layers", _layer_numbers(self.skip_layers))
        self._require_backend()

    def _require_backend(self) -> None:
        if not (isinstance(self.backend, str) or callable(self.backend)):
            raise ConfigError(
                "backend must be the name of a torch.compile backend or a callable, "
                f"not {type(self.backend).__name__}."
            )
        if self.compact_weights and self.backend != "inductor":
            raise ConfigError(
                f"compact_weights is for steps that Inductor compiles, not for backend {self.backend!r}: "
                "leave it out."
            )
        possible = {*_OF_TORCH_COMPILE, *(f.name for f in fields(self))}
        for name in self.compile_options:
            if name not in possible:
                near = difflib.get_close_matches(name, possible, n=1)
                meant = f"did you mean {near[0]}?" if near else "it is no argument of torch.compile either."
                raise ConfigError(f"qfpass.compile takes no {name}=: {meant}")
        taken = {"backend", "fullgraph", "dynamic"} & set(self.compile_options)
        if taken:
            raise ConfigError(f"qfpass sets {', '.join(sorted(taken))} of torch.compile itself.")

    def in_words(self) -> dict[str, str]:
        """The settings by name, for another process to compare with its own."""
        own = {
            f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in ("filters", "backend")
        }
        backend = self.backend if isinstance(self.backend, str) else getattr(self.backend, "__name__", "")
        return {**own, "backend": backend, "filters": "none" if self.filters is None else "given"}

    def resolve(
        self,
        model_context_length: int | None,
        sites: int,
        least_share: float = 1.0,
        slots_a_token: float = 1.0,
    ) -> "Sizes":
        """The sizes for a model: `model_context_length` in tokens (None: it has none), `sites` attentions.

        `least_share` is that of the layer with the fewest slots, over the mean; `slots_a_token` fit in the
        bytes of one in the model's own dtype.
        """
        context_length = self.context_length or model_context_length
        if context_length is None:
            raise ConfigError(
                "the model states no context length: pass context_length=, the tokens a session may see."
            )
        outside = [layer for layer in self.skip_layers if layer >= sites]
        if outside:
            raise ConfigError(f"skip_layers names {outside}, but the model has {sites} attentions, from 0.")
        slots = self._slots(context_length, slots_a_token)
        own = SCORES[self.score or "published"].recent(slots)
        recent = self.recent if self.recent is not None else max(1, min(own, slots - self.sinks - 1))
        least = slots_of_share(least_share, slots, recent + self.sinks)
        if slots < context_length and least < self.sinks + recent + 1:
            raise ConfigError(
                f"a budget of {slots} slots{_fewest(slots, least)} is smaller than sinks ({self.sinks}) "
                f"+ recent ({recent}) + 1: raise the budget (or lower the ratio), or lower sinks or recent."
            )
        return Sizes(context_length, slots, recent, self.sinks, self._chunk(min(slots, least)))

    def _slots(self, context_length: int, slots_a_token: float) -> int:
        if self.budget is not None:
            return min(self.budget, context_length)
        return min(math.ceil(context_length * slots_a_token / (self.ratio or 1)), context_length)

    def _chunk(self, slots: int) -> int:
        if self.chunk is not None and self.chunk >= slots:
            raise ConfigError(f"chunk ({self.chunk}) must be less than the slots ({slots}): lower chunk.")
        if slots <= SLOTS_WITHOUT_CHUNKS:
            return 1
        return self.chunk or min(DEFAULT_CHUNK, slots - 1)


@dataclass(frozen=True)
class Sizes:
    """A config's sizes for one model: tokens of context, slots a head, protected tokens, tokens a chunk."""

    context_length: int
    slots: int
    recent: int
    sinks: int
    chunk: int

    @property
    def largest_share(self) -> float:
        """The share with which a layer has a slot for every token."""
        protected = self.recent + self.sinks
        return (self.context_length - protected) / max(1, self.slots - protected)

    def slots_of(self, share: float) -> int:
        """Slots a head of a bounded layer that has this share."""
        return min(self.context_length, slots_of_share(share, self.slots, self.recent + self.sinks))


def slots_of_share(share: float, slots: int, protected: int) -> int:
    """Slots of a layer with this share of what scores fill, where `slots` is the mean of all layers."""
    return protected + int(share * (slots - protected))


def _fewest(slots: int, least: int) -> str:
    return "" if least == slots else f" on average, {least} in the layer that has fewest,"


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, not {value!r}.")


def _require_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def _layer_numbers(layers: object) -> tuple[int, ...]:
    try:
        numbers: tuple[Any, ...] = tuple(layers)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"skip_layers must list attention sites, not {layers!r}.") from None
    for number in numbers:
        _require_int("each of skip_layers", number, least=0)
    return tuple(sorted(set(numbers)))
