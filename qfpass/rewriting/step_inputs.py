"""The inputs of a graph on stores: their names, order and values, defined in one place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..store.layer import Layer, bounded_shares
from ..store.store_kind import fields_of


class SharedInputs(NamedTuple):
    """The inputs that all layers share: how many tokens the stores hold, and where the call ends.

    Attributes:
        seen: any tensor whose last size is the number of tokens in the stores of layers that aren't bounded,
            the new token included if a single one is read.
        lengths: [B], the same number for each row; None where it is equal in all rows.
        recent: [], how many of the newest tokens bounded layers never evict; None takes the rules' number.
        call_end: [], the position of the last token of the whole call; see `follow_text_length`.
        held: tensors like `seen` for bounded layers, one for each of `bounded_shares`.
    """

    seen: torch.Tensor
    lengths: torch.Tensor | None
    recent: torch.Tensor | None
    call_end: torch.Tensor
    held: tuple[torch.Tensor, ...] = ()


class StepInputs:
    """The inputs of a rewritten graph after `input_ids` [B, S] and `position_ids` [B, S].

    The fields of `SharedInputs` come first. Then, for each layer: its filters [Hkv, P] if its score does,
    the slot [B, Hkv, 1] that a single token is written to if the layer is bounded, and the tensors of its
    store, which the graph changes in place.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self._held = {share: f"held_{i}" for i, share in enumerate(bounded_shares(layers))}

    @property
    def names(self) -> list[str]:
        """The names of the graph's placeholders for these inputs, in order."""
        shared = [name for name in SharedInputs._fields if name != "held"]
        return [*shared, *self._held.values(), *(n for x in self._layers for n in self.names_of(x).values())]

    def visible_name(self, layer: Layer) -> str:
        """The name of the input whose size is the number of tokens in this layer's store."""
        return self._held[layer.rule.share] if layer.rule.is_bounded else "seen"

    def names_of(self, layer: Layer) -> dict[str, str]:
        """The names of this layer's own inputs, by field: filters, slot and the store's tensors."""
        filters = ("filters",) if layer.rule.needs_filters else ()
        slot = ("slot",) if layer.rule.is_bounded else ()
        fields = (*filters, *slot, *fields_of(layer.rule.store_type))
        return {field: f"{field}_{layer.index}" for field in fields}

    def values(
        self,
        reach: SharedInputs,
        stores: Sequence[Iterable[torch.Tensor]],
        filters: Sequence[torch.Tensor] = (),
        slots: Mapping[int, torch.Tensor] | None = None,
    ) -> list[torch.Tensor | None]:
        """The values of a call's inputs, in the order of `names`.

        Args:
            reach: the shared inputs.
            stores: the store of each layer.
            filters: each attention's filters, by its index; needed if a score reads filters.
            slots: [B, Hkv, 1] by the layer's number; needed if a layer is bounded.
        """
        values: list[torch.Tensor | None] = [*reach[:-1], *reach.held]
        for i, (layer, store) in enumerate(zip(self._layers, stores, strict=True)):
            if layer.rule.needs_filters:
                values.append(filters[layer.index])
            if layer.rule.is_bounded:
                assert slots is not None, "bounded layers are told the slot of a token"
                values.append(slots[i])
            values.extend(store)
        return values
