"""The inputs of a layer's attention beside query, key and value."""

from typing import Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class LayerInputs(NamedTuple, Generic[T]):
    """The inputs of `SlotAttention` and `RingAttention` that follow query, key and value, in this order.

    The tensors of the layer's store follow these. Where a call is written into a graph, these are nodes.

    Attributes:
        position: [B, S], the positions of the tokens that are read.
        visible: any tensor whose last size is the number of tokens in the store: with the new one for S = 1,
            without the new ones for a chunk.
        lengths: [B], the same number for each row where a step's rows differ; else None.
        recent: [], how many of the newest tokens a chunk doesn't evict; None takes the rule's number.
        filters: [Hkv, P], the filters of the layer's score; None if it reads none.
        sink: [Hq], a learned sink: one more logit a query head; None if the model has none.
        smoothing: [Hkv, D] in the keys' dtype, the factors of `store.smoothing`; None for keys as they are.
        slot: [B, Hkv, 1], the slot that a single token is written to; None if the layer isn't bounded.
    """

    position: T
    visible: T
    lengths: T | None = None
    recent: T | None = None
    filters: T | None = None
    sink: T | None = None
    smoothing: T | None = None
    slot: T | None = None


def split(
    inputs: tuple[torch.Tensor | None, ...],
) -> tuple[LayerInputs[torch.Tensor], tuple[torch.Tensor, ...]]:
    """The `LayerInputs` at the front of `inputs`, and the store's tensors behind them."""
    count = len(LayerInputs._fields)
    return LayerInputs(*inputs[:count]), inputs[count:]  # type: ignore[arg-type, return-value]
