"""What one of several processes has of a model whose weights are spread over them by heads and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed

from .part import Part, bytes_of

K = TypeVar("K")


@dataclass(frozen=True)
class Shards(Part):
    """The part of a tensor-parallel model that this process has.

    Attributes:
        parts: by the `id` of each plain tensor that holds a part of a spread weight, that tensor and the
            weight, a DTensor.
        splits_heads: whether each process has its own heads of every attention; else each has all.
    """

    parts: Mapping[int, tuple[torch.Tensor, Any]] = field(repr=False)
    splits_heads: bool = False

    def is_part(self, tensor: object) -> bool:
        """Whether a tensor of the graph is this process's part of one, and not a copy that all have."""
        _, whole = self.parts.get(id(tensor), (None, None))
        return whole is not None and not all(p.is_replicate() for p in whole.placements)

    def whole_of(self, tensor: torch.Tensor) -> Any:
        """The spread weight (DTensor) of which a tensor of the graph is a part; else the tensor itself."""
        return self.parts.get(id(tensor), (tensor, tensor))[1]

    def own_heads(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's heads, which lie along `dim`, of those of the whole model."""
        return whole.chunk(self.size, dim)[self.rank] if self.splits_heads else whole

    def joined(self, parts: Mapping[K, torch.Tensor], dim: int) -> dict[K, torch.Tensor]:
        """The tensors with all heads along `dim`; those of all processes have equal shapes."""
        return {name: self._all_heads(part, dim) for name, part in parts.items()}

    def _all_heads(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        if not self.splits_heads:
            return part
        sent = bytes_of(part, self.group)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        torch.distributed.all_gather(parts, sent, group=self.group)
        return torch.cat([each.view(part.dtype).view(part.shape) for each in parts], dim).to(part.device)
