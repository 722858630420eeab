"""Trained filters: a learned linear score of how much the model's output depends on a key and its value.

Each key/value head has one filter. A token's keys and values of all key/value heads of a layer are projected
on it (see `store.scores.trained`). `qfpass.train` makes trained filters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, FilterFileError, FilterMismatchError
from . import layout

EXTRA_WEIGHTS = 2  # weights of the log of the value's norm and of the position


class TrainedFilterSizes(Protocol):
    """The sizes of one attention that trained filters depend on."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


def filter_width(layer: TrainedFilterSizes) -> int:
    """The number of weights in one head's filter."""
    return layer.kv_heads * (layer.head_dim + layer.value_dim) + EXTRA_WEIGHTS


@dataclass(frozen=True, eq=False)
class TrainedFilters:
    """Trained filters of every rewritten layer, in graph order, and each layer's share of the slots.

    Attributes:
        filters: per layer `[kv_heads, kv_heads * (head_dim + value_dim) + 2]` float32: weights of the
            token's keys and values, head by head, key then value; one weight of the log of the norm of the
            head's own value; and one of the token's position, measured in multiples of the slots.
        shares: per layer, its slots over the mean of all layers; first and newest tokens don't count.
        source: which model the filters belong to and how they were made; JSON-able.

    Raises:
        ConfigError: the tensors or shares can't be filters.
    """

    filters: tuple[Tensor, ...]
    shares: tuple[float, ...]
    source: dict[str, Any] = field(default_factory=dict)

    score = "trained"

    def __post_init__(self) -> None:
        if not self.filters or len(self.filters) != len(self.shares):
            raise ConfigError(
                f"trained filters need one filter and one share for each layer, not {len(self.filters)} "
                f"filters and {len(self.shares)} shares."
            )
        for layer, tensor in enumerate(self.filters):
            if tensor.dtype != torch.float32 or tensor.ndim != 2 or not tensor.isfinite().all():
                raise ConfigError(
                    f"trained filters of layer {layer} are {tensor.dtype} {list(tensor.shape)}; they must be "
                    "finite float32 [kv_heads, numbers]."
                )
        mean = sum(self.shares) / len(self.shares)
        if min(self.shares) <= 0 or abs(mean - 1) > 1e-3:
            raise ConfigError(f"shares must be greater than 0, and 1 on average, not {mean:g}.")

    def check(self, layers: Sequence[TrainedFilterSizes]) -> None:
        """Raise unless the filters have the shapes of a model's layers, given in graph order.

        Raises:
            FilterMismatchError: the number of layers or heads or a dimension differs.
        """
        model = [(layer.kv_heads, filter_width(layer)) for layer in layers]
        mine = [tuple(tensor.shape) for tensor in self.filters]
        if model != mine:
            raise FilterMismatchError(
                "the trained filters were made for a model of another shape: they have "
                f"{len(mine)} layers of [heads, numbers] {sorted(set(mine))}, the model {len(model)} of "
                f"{sorted(set(model))}. Train filters on this model."
            )

    def to(self, device: torch.device | str) -> "TrainedFilters":
        """The same filters with every tensor on `device`."""
        return self.map_heads(lambda tensor, _: tensor.to(device))

    def of_first(self, layers: int) -> "TrainedFilters":
        """The filters of the first layers, for a model of these alone, whose mean share is 1."""
        mean = sum(self.shares[:layers]) / layers
        shares = tuple(share / mean for share in self.shares[:layers])
        return TrainedFilters(self.filters[:layers], shares, self.source)

    def map_heads(self, change: Callable[[Tensor, int], Tensor]) -> "TrainedFilters":
        """Filters of `change(tensor, dim)` of every tensor; `dim` is that of its heads."""
        return TrainedFilters(tuple(change(t, 0) for t in self.filters), self.shares, self.source)

    def for_slots(self, slots: int) -> tuple[Tensor, ...]:
        """The filters for `slots` slots per head on average: the position's weight becomes one per token."""
        scaled = []
        for tensor in self.filters:
            tensor = tensor.clone()
            tensor[:, -1] /= slots
            scaled.append(tensor)
        return tuple(scaled)

    def save(self, folder: str | Path) -> None:
        """Write the filters into `folder`, created if it is missing.

        Raises:
            OSError: the folder can't be written.
        """
        shares = tuple(torch.tensor([share], dtype=torch.float32) for share in self.shares)
        layout.write(Path(folder).expanduser(), {"filters": self.filters, "shares": shares}, self.source)

    @classmethod
    def from_fields(cls, fields: layout.Fields, source: dict[str, Any], folder: Path) -> "TrainedFilters":
        """Trained filters from the fields and source that `layout.read` found in `folder`.

        Raises:
            FilterFileError: the fields aren't those of trained filters.
        """
        try:
            shares = tuple(round(float(share), 6) for share in fields["shares"])
            return cls(fields["filters"], shares, source)
        except (ConfigError, KeyError, ValueError) as error:
            raise FilterFileError(f"{folder} does not hold trained filters: {error}") from error
