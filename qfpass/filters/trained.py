"""Trained filters: what a key and its value are worth to the model, learned from what it says.

Of a layer, the keys and values of all its key/value heads at a token are projected on one filter a head.
`qfpass.train` makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qfpass.errors import ConfigError, FilterFileError, FilterMismatchError
from qfpass.filters import layout

EXTRA = 2  # the weight of the log of the value's norm, and of a position


class LayerWidth(Protocol):
    """What trained filters need to know of a layer."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


def filter_width(layer: LayerWidth) -> int:
    """Numbers in one head's filter."""
    return layer.kv_heads * (layer.head_dim + layer.value_dim) + EXTRA


@dataclass(frozen=True, eq=False)
class TrainedFilters:
    """Filters of every rewritten layer, in graph order, and how many slots each layer gets.

    Attributes:
        filters: per layer `[kv_heads, kv_heads * (head_dim + value_dim) + 2]` float32: weights of the
            token's keys and values, head by head, key then value; of the log of the norm of the head's
            own value; and of a token's position, in numbers of slots.
        shares: per layer, its slots over the mean of all layers, sinks and newest tokens not counted.
        source: what they belong to and were made from; JSON-able.

    Raises:
        ConfigError: the tensors or numbers can't be filters.
    """

    filters: tuple[Tensor, ...]
    shares: tuple[float, ...]
    source: dict[str, Any] = field(default_factory=dict)

    score = "trained"

    def __post_init__(self) -> None:
        if not self.filters or len(self.filters) != len(self.shares):
            raise ConfigError(
                f"trained filters of {len(self.filters)} layers with {len(self.shares)} shares: "
                "give one of each a layer."
            )
        for layer, tensor in enumerate(self.filters):
            if tensor.dtype != torch.float32 or tensor.ndim != 2 or not tensor.isfinite().all():
                raise ConfigError(
                    f"trained filters of layer {layer} are {tensor.dtype} {list(tensor.shape)}; they must be "
                    "finite float32 [kv_heads, numbers]."
                )
        mean = sum(self.shares) / len(self.shares)
        if min(self.shares) <= 0 or abs(mean - 1) > 1e-3:
            raise ConfigError(f"shares must be above 0 and 1 on average; their mean is {mean:g}.")

    def check(self, layers: Sequence[LayerWidth]) -> None:
        """Compare with a model's layers, in graph order.

        Raises:
            FilterMismatchError: another number of layers or heads, or other dimensions.
        """
        model = [(layer.kv_heads, filter_width(layer)) for layer in layers]
        mine = [tuple(tensor.shape) for tensor in self.filters]
        if model != mine:
            raise FilterMismatchError(
                "the trained filters were made for a model of another shape, by [heads, numbers]: theirs "
                f"{len(mine)} layers of {sorted(set(mine))}, the model's {len(model)} of "
                f"{sorted(set(model))}. Train filters on this model."
            )

    def to(self, device: torch.device | str) -> "TrainedFilters":
        """The same filters with every tensor on `device`."""
        return TrainedFilters(tuple(t.to(device) for t in self.filters), self.shares, self.source)

    def for_slots(self, slots: int) -> tuple[Tensor, ...]:
        """The filters for `slots` slots a head on average: positions count in tokens, no more in slots."""
        scaled = []
        for tensor in self.filters:
            tensor = tensor.clone()
            tensor[:, -1] /= slots
            scaled.append(tensor)
        return tuple(scaled)

    def save(self, folder: str | Path) -> None:
        """Write the filters into `folder`, made if it is missing.

        Raises:
            OSError: the folder can't be written.
        """
        shares = tuple(torch.tensor([share], dtype=torch.float32) for share in self.shares)
        layout.write(Path(folder).expanduser(), {"filters": self.filters, "shares": shares}, self.source)

    @classmethod
    def from_fields(cls, fields: layout.Fields, source: dict[str, Any], folder: Path) -> "TrainedFilters":
        """What `save` wrote, read by `layout.read`.

        Raises:
            FilterFileError: it can't be trained filters.
        """
        try:
            shares = tuple(round(float(share), 6) for share in fields["shares"])
            return cls(fields["filters"], shares, source)
        except (ConfigError, KeyError, ValueError) as error:
            raise FilterFileError(f"{folder} does not hold trained filters: {error}") from error
