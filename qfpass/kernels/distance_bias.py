"""A bias by distance, one more term of the logits: made from positions, so a store needs nothing for it."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class DistanceBias:
    """slope * (key position - query position): linear biases (Press et al. 2021, arXiv 2108.12409).

    Every field holds one number a query head, or one for all heads. `distance_bias` computes it.
    """

    slopes: tuple[float, ...]

    @property
    def heads(self) -> int:
        """For how many heads there are numbers; 1 if they are for all."""
        return len(self.slopes)

    def for_heads(self, heads: int) -> "DistanceBias":
        """The same bias with a number for each of so many heads, where there was one for all."""
        return DistanceBias(*(getattr(self, f.name) * (heads // self.heads) for f in fields(self)))

    def numbers(self) -> torch.Tensor:
        """The fields as a tensor [fields, Hq] float32, which a graph holds."""
        return torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.float32)


def distance_bias(
    numbers: torch.Tensor, query_position: torch.Tensor, key_position: torch.Tensor
) -> torch.Tensor:
    """The bias [B, Hq, Sq, Sk] float32 for `DistanceBias.numbers()` [fields, Hq].

    Positions are [B, Sq] and [B, 1 or Hkv, Sk].
    """
    distance = key_position[:, :, None, :] - query_position[:, None, :, None]
    distance = distance.repeat_interleave(numbers.shape[1] // distance.shape[1], dim=1)
    (slopes,) = numbers[:, :, None, None]
    return distance * slopes
