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
        parts: by the `id` of each plain tensor that holds a part of a spread weight, that tensor and the
            weight, a DTensor.
        vocabulary: ids are below this number, if the embedding table is spread; else None.
        splits_heads: whether each process has its own heads of every attention; else each has all.
    """

    rank: int
    size: int
    group: Any = field(repr=False)
    parts: Mapping[int, tuple[torch.Tensor, Any]] = field(repr=False)
    vocabulary: int | None = None
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

    def share_chance(self, device: torch.device) -> None:
        """Give all processes the first one's state of random numbers, so that they sample the same tokens."""
        on_gpu = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
        sent = state.to(device)
        torch.distributed.broadcast(sent, group=self.group, group_src=0)
        if on_gpu:
            torch.cuda.set_rng_state(sent.cpu(), device)
        else:
            torch.set_rng_state(sent)
