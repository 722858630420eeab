"""The settings of one `qfpass.compile`, checked once; they give a model's sizes."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .errors import ConfigError
from .filters import QFilters, TrainedFilters
from .kernels.kernel import Kernel
from .sizes import Sizes, slots_of_share
from .store.int4_values import Int4ValueSlots
from .store.int8_slots import Int8Slots
from .store.scores import SCORES, Score, score_named
from .store.slots import Slots
from .store.store_kind import StoreKind
from .switches import Switches

DEFAULT_CHUNK = 512
# A GPU reads 512 tokens in less time than it takes to launch their kernels (Llama-3.1-8B's shape, H200).
DEFAULT_CHUNK_ON_GPU = 2048
# A store of at most so many slots reads its prompt token by token: the graph for chunks of any length assumes
# that each length is less than the number of slots.
SLOTS_WITHOUT_CHUNKS = 3
_TORCH_COMPILE_ARGUMENTS = frozenset(inspect.signature(torch.compile).parameters) - {"model"}
STORE_KINDS: dict[torch.dtype | str | None, type[StoreKind]] = {
    None: Slots, torch.int8: Int8Slots, "int8-int4": Int4ValueSlots,
}  # fmt: skip
AUTO = "auto"  # a store_dtype that is chosen for the model; see `choose_store`
OVERFLOWS = ("error", "continue", "rerotate")


@dataclass(frozen=True)
class Config:
    """The settings of `qfpass.compile`.

    Attributes:
        ratio: how many times smaller than the full cache the store is: slots = ceil(context_length / ratio),
            or more if `store_dtype` or `store` makes a slot smaller than a token of the full cache. 1 keeps
            every key.
        budget: slots per key/value head, given directly instead of `ratio`.
        context_length: the most tokens that a session may see; None takes the model's own.
        recent: how many of the newest tokens are never evicted; None takes the score's part of the slots:
            a half for "published", an eighth of few to a half of many for "trained", a quarter for others.
        sinks: how many of the first tokens are never evicted (Xiao et al. 2023, arXiv 2309.17453).
        score: the score that ranks keys, a name in `qfpass.store.scores.SCORES`; None takes the score that
            the filters are for, or "published" if none are given.
        store_dtype: of stored keys and values: None for the model's, torch.int8, "int8-int4" for keys in
            eight bits and values in four, or "auto". Windows and `skip_layers` always keep the model's.
        store: a store kind of the caller's own, in the place of `store_dtype`.
        chunk: how many tokens of a prompt are read at a time; None takes 512, on a GPU 2,048, or slots - 1
            if fewer.
        filters: Q-Filters or trained filters, or a folder or hub repository of them; None finds or makes
            Q-Filters that fit.
        skip_layers: the attention sites, counted from 0, that keep every key.
        overflow: what happens to a text longer than `context_length`: "error" refuses it, "continue" lets
            positions go on, "rerotate" moves the stored keys to earlier positions so that they stay in range.
        kernel: attention of the caller's own, in the place of every kernel; None chooses by device and dtype.
        backend: a torch.compile backend ("inductor", "eager", ...) by name or as a callable.
        verify: prove the rewritten graph against the original before returning.
        switches: which optimisations are used, except those that the environment variable QFPASS_OFF names.
        compile_options: further keyword arguments for torch.compile (`mode`, `options`).

    Raises:
        ConfigError: a setting has a value that can't work, or there is no such setting.
    """

    ratio: float | None = None
    budget: int | None = None
    context_length: int | None = None
    recent: int | None = None
    sinks: int = 4
    score: Score | None = None
    store_dtype: torch.dtype | str | None = AUTO
    store: type[StoreKind] | None = None
    chunk: int | None = None
    filters: QFilters | TrainedFilters | str | Path | None = None
    skip_layers: Sequence[int] = ()
    overflow: str = "error"
    kernel: Kernel | None = None
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
        if self.score is not None:
            object.__setattr__(self, "score", score_named(self.score))
        if self.store is not None and self.store_dtype not in (None, AUTO):
            raise ConfigError("store and store_dtype both say how keys are stored: give one of them.")
        if self.store is not None and getattr(self.store, "_fields", ())[-2:] != ("scores", "positions"):
            raise ConfigError(
                "store must be a NamedTuple class whose last fields are scores and positions (see "
                f"qfpass.StoreKind), not {self.store!r}."
            )
        if self.store_dtype != AUTO and self.store_dtype not in STORE_KINDS:
            raise ConfigError(
                "store_dtype must be 'auto', torch.int8, 'int8-int4', or None for the model's own, not "
                f"{self.store_dtype!r}."
            )
        if self.overflow not in OVERFLOWS:
            raise ConfigError(f"overflow must be one of {', '.join(OVERFLOWS)}, not {self.overflow!r}.")
        if self.filters is not None and not isinstance(self.filters, (QFilters, TrainedFilters, str, Path)):
            raise ConfigError(
                "filters must be QFilters or TrainedFilters, a folder or a hub repository's name, "
                f"not {type(self.filters).__name__}."
            )
        if self.kernel is not None and not isinstance(self.kernel, Kernel):
            raise ConfigError(f"kernel must be a qfpass.Kernel(name, function), not {self.kernel!r}.")
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
        possible = {*_TORCH_COMPILE_ARGUMENTS, *(f.name for f in fields(self))}
        for name in self.compile_options:
            if name not in possible:
                near = difflib.get_close_matches(name, possible, n=1)
                meant = f"did you mean {near[0]}?" if near else "it is no argument of torch.compile either."
                raise ConfigError(f"qfpass.compile takes no {name}=: {meant}")
        taken = {"backend", "fullgraph", "dynamic"} & set(self.compile_options)
        if taken:
            raise ConfigError(f"qfpass sets {', '.join(sorted(taken))} of torch.compile itself.")

    @property
    def store_kind(self) -> type[StoreKind]:
        """What bounded layers' slots hold; windows and `skip_layers` hold the model's dtype."""
        assert self.store or self.store_dtype != AUTO, "choose_store decides before this is asked"
        return self.store or STORE_KINDS[self.store_dtype]

    def in_words(self) -> dict[str, str]:
        """The settings by name, as strings, which processes compare with each other."""
        by_name = ("filters", "backend", "kernel")
        own = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in by_name}
        backend = self.backend if isinstance(self.backend, str) else getattr(self.backend, "__name__", "")
        kernel = self.kernel.name if self.kernel else "none"
        filters = "none" if self.filters is None else "given"
        return {**own, "backend": backend, "kernel": kernel, "filters": filters}

    def resolve(
        self,
        model_context_length: int | None,
        sites: int,
        least_share: float = 1.0,
        slots_a_token: float = 1.0,
        default_chunk: int = DEFAULT_CHUNK,
    ) -> "Sizes":
        """The sizes for one model.

        Args:
            model_context_length: the model's own context length in tokens, None if it has none.
            sites: the number of its attentions.
            least_share: the smallest layer's number of slots, relative to the mean.
            slots_a_token: how many slots take the bytes of one slot in the model's dtype.
            default_chunk: the longest chunk if `chunk` is None.

        Raises:
            ConfigError: the sizes can't work for this model.
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
        own = (self.score or SCORES["published"]).recent(slots)
        recent = self.recent if self.recent is not None else max(1, min(own, slots - self.sinks - 1))
        least = slots_of_share(least_share, slots, recent + self.sinks)
        if slots < context_length and least < self.sinks + recent + 1:
            raise ConfigError(
                f"a budget of {slots} slots{_fewest(slots, least)} is smaller than sinks ({self.sinks}) "
                f"+ recent ({recent}) + 1: raise the budget (or lower the ratio), or lower sinks or recent."
            )
        return Sizes(context_length, slots, recent, self.sinks, self._chunk(min(slots, least), default_chunk))

    def _slots(self, context_length: int, slots_a_token: float) -> int:
        if self.budget is not None:
            return min(self.budget, context_length)
        return min(math.ceil(context_length * slots_a_token / (self.ratio or 1)), context_length)

    def _chunk(self, slots: int, default: int) -> int:
        if self.chunk is not None and self.chunk >= slots:
            raise ConfigError(f"chunk ({self.chunk}) must be less than the slots ({slots}): lower chunk.")
        if slots <= SLOTS_WITHOUT_CHUNKS:
            return 1
        return self.chunk or min(default, slots - 1)


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
        raise ConfigError(
            f"skip_layers must list attentions by number, such as [{layers!r}], not {layers!r}."
        ) from None
    for number in numbers:
        _require_int("each of skip_layers", number, least=0)
    return tuple(sorted(set(numbers)))
