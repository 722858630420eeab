"""The inputs of a decoder's graphs after ids and positions, for a call on a session's stores."""

from collections.abc import Sequence

import torch

from ..filters import QFilters, TrainedFilters
from ..rewriting.step_inputs import SharedInputs, StepInputs
from ..sessions.stores import Stores
from ..sizes import Sizes
from ..store.layer import Layer, bounded_shares
from ..upstream import dynamo


class GraphInputs:
    """Makes the inputs of graphs on the stores of `layers`, which hold at most `most_tokens` tokens."""

    def __init__(
        self,
        layers: Sequence[Layer],
        filters: QFilters | TrainedFilters | None,
        most_tokens: int,
        device: torch.device,
    ) -> None:
        self._shares, self._step_inputs = bounded_shares(layers), StepInputs(layers)
        self._filters, self._most_tokens, self._device = filters, most_tokens, device
        self._devices = {layer.index: layer.device for layer in layers}
        self._filters_by_slots = dict[int, tuple[torch.Tensor, ...]]()
        # Only sizes of its slices are read: they tell the graphs how many tokens are visible.
        self._size_source = torch.empty(most_tokens + 1, device=device)

    def __call__(
        self,
        tokens: int,
        lengths: torch.Tensor | None,
        stores: Stores,
        sizes: Sequence[Sizes],
        call_end: int,
    ) -> list[torch.Tensor | None]:
        """The inputs for rows that have read at most `tokens` tokens.

        Args:
            lengths: [B], the tokens row by row; None if all rows are equal or all stores are full.
            sizes: of the rows that read. A step reads no `recent`, in which they may differ.
            call_end: the position of the last token of the call; 0 for a step.
        """
        different = set(sizes)
        most_slots = (max(each.slots_of(share) for each in different) for share in self._shares)
        reach = SharedInputs(
            seen=self._of_size(min(tokens, self._most_tokens)),
            lengths=lengths,
            recent=torch.tensor(sizes[0].recent, device=self._device),
            call_end=torch.tensor(call_end, device=self._device),
            held=tuple(self._of_size(min(tokens, most)) for most in most_slots),
        )
        return self._step_inputs.values(reach, stores, self.filters_for(sizes[0].slots), stores.write_slots)

    def filters_for(self, slots: int) -> tuple[torch.Tensor, ...]:
        """The filters of every attention for a budget of `slots`; empty without filters."""
        if slots not in self._filters_by_slots:
            found = self._filters.for_slots(slots) if self._filters else ()
            self._filters_by_slots[slots] = tuple(
                each if self._devices.get(i) is None else each.to(self._devices[i])
                for i, each in enumerate(found)
            )
        return self._filters_by_slots[slots]

    def _of_size(self, size: int) -> torch.Tensor:
        """A tensor [size], marked so that one graph serves every size, 0 and 1 included."""
        tensor = self._size_source[:size]
        dynamo.mark_unbacked(tensor, 0)
        return tensor
