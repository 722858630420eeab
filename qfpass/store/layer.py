"""A layer of a compiled decoder: the sizes of one attention, and the rule by which it keeps keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .ring import RingRule
from .slots import SlotRule

Rule = SlotRule | RingRule


@dataclass(frozen=True)
class Layer:
    """One attention of a compiled decoder, as its sessions know it; it holds no graph.

    Attributes:
        index: its place among the decoder's attentions.
        name: the path of its module.
        span: the keys that a query sees, in words.
        kernel: the names of the kernels that read the store.
        smoothing: a digest of the factors that its keys are divided by; empty without.
        device: where its store lies, if that isn't where the token ids do.
    """

    index: int
    name: str
    span: str
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    rule: Rule
    kernel: str
    smoothing: str
    device: torch.device | None

    @property
    def is_ring(self) -> bool:
        """Whether the layer keeps exactly the tokens of its window or chunk."""
        return isinstance(self.rule, RingRule)


def bounded_shares(layers: Sequence[Layer]) -> list[float]:
    """The distinct shares of slots among the bounded layers, ascending."""
    return sorted({layer.rule.share for layer in layers if layer.rule.is_bounded})
