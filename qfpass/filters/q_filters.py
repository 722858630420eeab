"""The Q-Filters of one model: a checked container that is saved, loaded and compared with a model."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, FilterFileError, FilterMismatchError
from . import layout, locate

FIELDS = ("filters", "directions", "kappa", "mean_query")


class QFilterSizes(Protocol):
    """The sizes of one attention that Q-Filters depend on."""

    @property
    def query_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class HeadShape(NamedTuple):
    """Head counts and head dimension of one layer; `query_heads` is None if only `filters` are known."""

    query_heads: int | None
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        queries = "" if self.query_heads is None else f"{self.query_heads} query heads, "
        return f"{queries}{self.kv_heads} key/value heads, head dimension {self.head_dim}"


@dataclass(frozen=True, eq=False)
class QFilters:
    """Q-Filters of every rewritten layer, in graph order (Godey et al. 2025, arXiv 2503.02812).

    Attributes:
        filters: per layer `[kv_heads, head_dim]` float32. The score of a key is `<key, filter>` (higher is
            kept); a filter is the mean of `directions` over the query heads of its group.
        directions: per layer `[query_heads, head_dim]` float32: each query head's unit vector v1, signed so
            that the mean query projects positively on it. None for published filters.
        kappa: per layer `[query_heads]` float32: E<query, v1>, not negative beyond rounding.
        mean_query: per layer `[query_heads, head_dim]` float32: E[query].
        source: which model the filters belong to and how they were made; JSON-able.

    Raises:
        ConfigError: the tensors don't fit together, or `source` is not JSON-able.
    """

    filters: tuple[Tensor, ...]
    directions: tuple[Tensor, ...] | None = None
    kappa: tuple[Tensor, ...] | None = None
    mean_query: tuple[Tensor, ...] | None = None
    source: dict[str, Any] = field(default_factory=dict)

    score = "published"

    def __post_init__(self) -> None:
        for name, tensors in self._present().items():
            _check_ranks(name, tensors, layers=len(self.filters))
        for layer, shape in enumerate(self.shapes):
            self._check_layer(layer, shape)
        try:
            json.dumps(self.source)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The source of Q-Filters can't be written as JSON ({error}): "
                "use only strings, numbers, booleans, None, lists and dictionaries."
            ) from error

    @property
    def shapes(self) -> tuple[HeadShape, ...]:
        """Head counts and head dimension of each layer."""
        queries = next((t for name, t in self._present().items() if name != "filters"), None)
        return tuple(
            HeadShape(None if queries is None else len(queries[layer]), *tensor.shape)
            for layer, tensor in enumerate(self.filters)
        )

    def check(self, layers: Sequence[QFilterSizes]) -> None:
        """Raise unless the filters have the shapes of a model's layers, given in graph order.

        Raises:
            FilterMismatchError: the number of layers or heads or the dimension differs; the message
                shows both sides.
        """
        model = [HeadShape(layer.query_heads, layer.kv_heads, layer.head_dim) for layer in layers]
        mine = self.shapes
        # Published filters don't say how many query heads there are, so that isn't compared.
        known = [
            theirs._replace(query_heads=None) if own.query_heads is None else theirs
            for theirs, own in zip(model, mine, strict=False)
        ]
        if len(model) != len(mine) or known != list(mine):
            raise FilterMismatchError(
                "The Q-Filters were made for a model of another shape.\n"
                f"  model:   {_runs(model)}\n  filters: {_runs(mine)}\n"
                f"  filters come from: {self.source}\n"
                "Give the filters of this model, or calibrate on it to make them."
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Slots of each layer over the mean of all layers: 1 for every layer."""
        return (1.0,) * len(self.filters)

    def for_slots(self, slots: int) -> tuple[Tensor, ...]:
        """The filters of each layer, the same for any number of slots."""
        return self.filters

    def to(self, device: torch.device | str) -> "QFilters":
        """The same filters with every tensor on `device`."""
        return self.map_heads(lambda tensor, _: tensor.to(device))

    def of_first(self, layers: int) -> "QFilters":
        """The filters of the first layers, for a model of these alone."""
        return replace(self, **{name: each[:layers] for name, each in self._present().items()})  # type: ignore[arg-type]

    def map_heads(self, change: Callable[[Tensor, int], Tensor]) -> "QFilters":
        """Filters of `change(tensor, dim)` of every tensor; `dim` is that of its heads."""
        changed = {name: tuple(change(t, 0) for t in each) for name, each in self._present().items()}
        return replace(self, **changed)  # type: ignore[arg-type]

    def of_whole(
        self, joined: Callable[[dict[int, Tensor], int], dict[int, Tensor]], first: int
    ) -> "QFilters":
        """The filters of a whole model, of which these are one process's, from layer `first` on.

        `joined` gives the tensors of all layers by number for a process's own; see `graph.part.Part.joined`.
        """
        present = self._present().items()
        whole = {name: tuple(joined(dict(enumerate(each, first)), 0).values()) for name, each in present}
        return replace(self, **whole)  # type: ignore[arg-type]

    def save(self, folder: str | Path) -> None:
        """Write `qfilters.safetensors` and `qfilters.json` into `folder`, created if it is missing.

        A crash leaves either the old filters or the new ones, complete.

        Raises:
            OSError: the folder can't be written.
        """
        layout.write(Path(folder).expanduser(), self._present(), self.source)

    @classmethod
    def load(cls, folder_or_repo: str | Path) -> "QFilters":
        """The Q-Filters in a folder or hub repository, written by `save` or published.

        Published filters (hub repositories `nthngdy/<model>_qfilt`) hold the negated direction, so loading
        negates them again; their `directions`, `kappa` and `mean_query` are None.

        Raises:
            FilterFileError: no Q-Filters are there, they can't be read, or the hub can't be reached.
        """
        fields, source, folder = locate.read_filters(folder_or_repo)
        return cls.from_fields(fields, source, folder)

    @classmethod
    def from_fields(cls, fields: layout.Fields, source: dict[str, Any], folder: Path) -> "QFilters":
        """Q-Filters from the fields and source that `layout.read` found in `folder`.

        Raises:
            FilterFileError: the fields aren't those of Q-Filters.
        """
        try:
            return cls(**fields, source=source)
        except (ConfigError, TypeError) as error:  # TypeError: an unknown field
            raise FilterFileError(f"{folder} does not hold Q-Filters: {error}") from error

    def _present(self) -> dict[str, tuple[Tensor, ...]]:
        fields = {name: getattr(self, name) for name in FIELDS}
        return {name: tensors for name, tensors in fields.items() if tensors is not None}

    def _check_layer(self, layer: int, shape: HeadShape) -> None:
        queries = shape.query_heads or shape.kv_heads
        per_query = (queries, shape.head_dim)
        wanted: dict[str, tuple[int, ...]] = {
            "filters": (shape.kv_heads, shape.head_dim),
            "directions": per_query,
            "kappa": (queries,),
            "mean_query": per_query,
        }
        found = {name: tuple(tensors[layer].shape) for name, tensors in self._present().items()}
        if queries % shape.kv_heads or any(found[name] != wanted[name] for name in found):
            raise ConfigError(
                f"The Q-Filters of layer {layer} don't fit together: {found}. filters must be "
                "[kv_heads, head_dim], directions and mean_query [query_heads, head_dim], kappa "
                "[query_heads], with query_heads a multiple of kv_heads."
            )


def _check_ranks(name: str, tensors: Sequence[Tensor], layers: int) -> None:
    if not tensors or len(tensors) != layers:
        raise ConfigError(
            f"Q-Filters of {layers} layers have {len(tensors)} tensors in {name}: give one tensor per layer, "
            "and at least one layer."
        )
    rank = 1 if name == "kappa" else 2
    for layer, tensor in enumerate(tensors):
        if tensor.dtype != torch.float32 or tensor.ndim != rank or not tensor.numel():
            raise ConfigError(
                f"Q-Filters layer {layer}: {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"it must be a non-empty torch.float32 tensor of {rank} dimension(s)."
            )


def _runs(shapes: Iterable[HeadShape]) -> str:
    """A description that counts runs of equal layers: `4 layers: 3 of ..., then 1 of ...`."""
    runs = [(len(list(run)), shape) for shape, run in groupby(shapes)]
    parts = ", then ".join(f"{count} of {shape}" for count, shape in runs)
    return f"{sum(count for count, _ in runs)} layers: {parts or 'none'}"
