"""What one of several processes has of a model whose layers are split over them, as stages of a pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed

from .part import Part, bytes_of

K = TypeVar("K")


@dataclass(frozen=True)
class Stages(Part):
    """The part of a pipeline that this process has: some of the layers, whole.

    Attributes:
        attentions: those of the whole model, in order; of other processes' layers they have no nodes. Empty
            as long as they aren't known.
    """

    attentions: Sequence[Any] = field(default=(), repr=False)

    def own_heads(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """All heads: a layer is in one process."""
        return whole

    def joined(self, parts: Mapping[K, torch.Tensor], dim: int) -> dict[K, torch.Tensor]:
        """The tensors of all processes' layers, the first stage's first."""
        forms: list[Any] = [None] * self.size
        own = [(name, part.shape, part.dtype, part.device.type) for name, part in parts.items()]
        torch.distributed.all_gather_object(forms, own, group=self.group)
        whole = dict[K, torch.Tensor]()
        for rank, stage in enumerate(forms):
            for name, shape, dtype, device in stage:
                whole[name] = self._from(rank, parts.get(name), shape, dtype, device)
        return whole

    def _from(
        self, rank: int, own: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype, device: str
    ) -> torch.Tensor:
        """A tensor of one process, of which the others know the form."""
        given = torch.empty(shape, dtype=dtype, device=device) if rank != self.rank else own
        assert given is not None
        sent = bytes_of(given, self.group)
        torch.distributed.broadcast(sent, group=self.group, group_src=rank)
        return sent.view(dtype).view(shape).to(given.device)
