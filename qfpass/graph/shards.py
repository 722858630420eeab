"""What one of several processes has of a model whose weights are spread over them by heads and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed


@dataclass(frozen=True)
class Shards:
    """The part of a tensor-parallel model that this process has.

    Attributes:
        rank: this process's number among those that share the weights, from 0.
        size: how many they are.
        group: their process group.
        wholes: the spread weights (DTensors) by `id` of the plain tensor that holds this process's part.
        vocabulary: ids are below this number, if the embedding table is spread; else None.
        splits_heads: whether each process has its own heads of every attention; else each has all.
    """

    rank: int
    size: int
    group: Any = field(repr=False)
    wholes: Mapping[int, Any] = field(repr=False)
    vocabulary: int | None = None
    splits_heads: bool = False

    def is_part(self, tensor: object) -> bool:
        """Whether a tensor of the graph is this process's part of one, and not a copy that all have."""
        whole = self.wholes.get(id(tensor))
        return whole is not None and not all(p.is_replicate() for p in whole.placements)

    def own_heads(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's heads, which lie along `dim`, of those of the whole model."""
        return whole.chunk(self.size, dim)[self.rank] if self.splits_heads else whole

    def all_heads(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        """The heads of the whole model, of which `part` has this process's along `dim`.

        All processes must call it, with equal shapes.
        """
        if not self.splits_heads:
            return part
        sent = part.detach().contiguous().reshape(-1).view(torch.uint8)  # gloo doesn't send every dtype
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        torch.distributed.all_gather(parts, sent, group=self.group)
        return torch.cat([each.view(part.dtype).view(part.shape) for each in parts], dim)
