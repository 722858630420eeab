"""A rewritten decoder with what runs it eagerly: its stores, and the inputs of a call."""

from collections.abc import Sequence

import torch

from ..errors import InputError
from ..graph.captured import Captured
from ..store.kv_form import KVForm
from ..store.layer import bounded_shares
from ..store.ring import Ring
from ..store.slots import Protection, SlotRule, slot_to_replace
from ..store.store_kind import StoreKind
from .rewrite import rewrite
from .site import Site, layers_of
from .step_inputs import SharedInputs, StepInputs

Store = StoreKind | Ring


class OnStores:
    """A decoder whose attentions work on stores that are inputs of its graph.

    All rows of a call stand at the same position. `module` is the graph; see `StepInputs` for what it takes
    after ids and positions.
    """

    def __init__(self, captured: Captured, sites: Sequence[Site]) -> None:
        self.sites, self.dtype, self.device = tuple(sites), captured.dtype, captured.device
        self.module = rewrite(captured, sites)
        self.step_inputs = StepInputs(layers_of(sites))

    def allocate(self, batch: int, dtype: torch.dtype | None = None) -> list[Store]:
        """Empty stores for `batch` rows, one an attention, in the model's dtype or another."""
        dtype = dtype or self.dtype
        return [
            site.rule.allocate(batch, KVForm.of(site.attention, dtype, site.attention.device or self.device))
            for site in self.sites
        ]

    @torch.no_grad()
    def read(
        self,
        ids: torch.Tensor,
        stores: Sequence[Store],
        seen: int,
        filters: Sequence[torch.Tensor] = (),
        call_end: int | None = None,
    ) -> torch.Tensor:
        """Read ids [B, S] after `seen` tokens and return their logits [B, S, V]; the stores change in place.

        Bounded stores take a chunk of at most one token less than their slots. Layers with other numbers of
        slots need other shares, as `qfpass.rewrite` gives them.

        Args:
            filters: [Hkv, P] for each attention, where scores read them.
            call_end: the position of the last token of the whole text, by default of these ids.
        """
        return self.module(*self.inputs(ids, stores, seen, filters, call_end))

    def inputs(
        self,
        ids: torch.Tensor,
        stores: Sequence[Store],
        seen: int,
        filters: Sequence[torch.Tensor] = (),
        call_end: int | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """The arguments of `module` for `read`.

        Raises:
            InputError: more tokens than fit, or no filters for a score that reads some.
        """
        length = ids.shape[1]
        most = min((site.rule.slots - 1 for site in self.sites if site.rule.is_bounded), default=length)
        if length > 1 and length > most:
            raise InputError(f"{length} tokens don't fit into bounded stores at once: give {most} at most.")
        if any(site.rule.needs_filters for site in self.sites) and len(filters) < len(self.sites):
            raise InputError("a layer's score reads filters: give filters=, one [Hkv, P] for each attention.")
        position = torch.arange(seen, seen + length, device=self.device).expand(len(ids), -1)
        # A single token is stored before it is attended to, a chunk after.
        count = seen + 1 if length == 1 else seen
        slots_of = {site.rule.share: site.rule.slots for site in self.sites if site.rule.is_bounded}
        shared = SharedInputs(
            seen=torch.empty(count, device=self.device),
            lengths=None,
            recent=None,
            call_end=torch.tensor(seen + length - 1 if call_end is None else call_end, device=self.device),
            held=tuple(
                torch.empty(min(count, slots_of[share]), device=self.device)
                for share in bounded_shares(layers_of(self.sites))
            ),
        )
        slots = {
            i: _slot_for(site.rule, store, position)
            for i, (site, store) in enumerate(zip(self.sites, stores, strict=True))
            if isinstance(site.rule, SlotRule) and not isinstance(store, Ring) and site.rule.is_bounded
        }
        return (ids, position, *self.step_inputs.values(shared, stores, filters, slots))


def _slot_for(rule: SlotRule, store: StoreKind, position: torch.Tensor) -> torch.Tensor:
    """The slot [B, Hkv, 1] that a single token at position [B, 1] takes; of a chunk nobody reads it."""
    protection = Protection(rule.recent, rule.sinks)
    return slot_to_replace(
        store.scores, store.positions, protection, position[:, -1:].to(store.positions.device)
    )
