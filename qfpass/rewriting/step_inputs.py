"""The inputs of a graph on stores: their names, order and values, defined in one place."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .site import Site, bounded_shares


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

    The fields of `SharedInputs` come first. Then, for each site: its filters [Hkv, P] if its score does,
    the slot [B, Hkv, 1] that a single token is written to if the layer is bounded, and the tensors of its
    store, which the graph changes in place.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)
        self._held = {share: f"held_{i}" for i, share in enumerate(bounded_shares(sites))}

    @property
    def names(self) -> list[str]:
        """The names of the graph's placeholders for these inputs, in order."""
        shared = [name for name in SharedInputs._fields if name != "held"]
        return [*shared, *self._held.values(), *(n for s in self._sites for n in self.names_of(s).values())]

    def visible_name(self, site: Site) -> str:
        """The name of the input whose size is the number of tokens in this layer's store."""
        return self._held[site.rule.share] if site.rule.is_bounded else "seen"

    def names_of(self, site: Site) -> dict[str, str]:
        """The names of this site's own inputs, by field: filters, slot and the store's tensors."""
        filters = ("filters",) if site.rule.needs_filters else ()
        slot = ("slot",) if site.rule.is_bounded else ()
        fields = (*filters, *slot, *site.rule.store_type._fields)
        return {field: f"{field}_{site.attention.index}" for field in fields}

    def values(
        self,
        reach: SharedInputs,
        stores: Sequence[Sequence[torch.Tensor]],
        filters: Sequence[torch.Tensor] = (),
        slots: Mapping[int, torch.Tensor] | None = None,
    ) -> list[torch.Tensor | None]:
        """The values of a call's inputs, in the order of `names`.

        Args:
            reach: the shared inputs.
            stores: the store of each site.
            filters: each attention's filters, by its index; needed if a score reads filters.
            slots: [B, Hkv, 1] by the site's number; needed if a layer is bounded.
        """
        values: list[torch.Tensor | None] = [*reach[:-1], *reach.held]
        for i, (site, store) in enumerate(zip(self._sites, stores, strict=True)):
            if site.rule.needs_filters:
                values.append(filters[site.attention.index])
            if site.rule.is_bounded:
                assert slots is not None, "bounded layers are told the slot of a token"
                values.append(slots[i])
            values.extend(store)
        return values
