"""What one of several processes has of a model that they run together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed

K = TypeVar("K")


@dataclass(frozen=True)
class Part(ABC):
    """The part of a model that this process has.

    Attributes:
        rank: this process's number among those that share the model, from 0.
        size: how many they are.
        group: their process group.
        vocabulary: ids are below this number, if this process's graph may not show it; else None.
    """

    rank: int
    size: int
    group: Any = field(repr=False)
    vocabulary: int | None

    @abstractmethod
    def own_heads(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's heads of a layer, which lie along `dim`, of those of the whole model."""

    @abstractmethod
    def joined(self, parts: Mapping[K, torch.Tensor], dim: int) -> dict[K, torch.Tensor]:
        """The whole model's tensors by name, of which `parts` are this process's, with heads along `dim`.

        All processes must call it, each with the tensors of its own layers, in order.
        """

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


def bytes_of(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """A tensor's bytes, one after the other, since not every backend sends every dtype.

    They lie where the group's backend takes them.
    """
    sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return sent.cuda() if torch.distributed.get_backend(group) == "nccl" else sent
