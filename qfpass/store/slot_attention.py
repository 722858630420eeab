"""Attention of a layer whose keys are bounded: over its slots and, for a chunk, over itself."""

import torch
from torch import nn

from ..kernels import join
from .reading import Reading, distance_bias, hiding, length_bias, weigh_with_sink
from .scores import SCORES
from .slots import AnySlots, Protection, SlotRule, append, keep_best, slot_of_position, write


class SlotAttention(nn.Module):
    """Attention of one layer over its store; evicts as it reads, unless the rule has a slot for every token.

    A single token takes the slot that it is told, the one with the lowest score, and then sees exactly the
    store. A chunk sees the store and itself, then the best of both are kept. Either way the store ends with
    the sinks, the `recent` newest tokens and the highest scores among the rest of all tokens seen.
    """

    slopes: torch.Tensor | None

    def __init__(self, reading: Reading, rule: SlotRule) -> None:
        super().__init__()
        self.reading, self.rule = reading, rule
        slopes = None if reading.slopes is None else torch.tensor(reading.slopes, dtype=torch.float32)
        self.register_buffer("slopes", slopes, persistent=False)

    @property
    def sharing_key(self) -> tuple[object, ...]:
        """Two layers with equal keys run the same code."""
        return (type(self), self.reading, self.rule)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
        visible: torch.Tensor,
        lengths: torch.Tensor | None,
        recent: torch.Tensor | None,
        filters: torch.Tensor | None,
        sink: torch.Tensor | None,
        slot: torch.Tensor | None,
        *store: torch.Tensor,
    ) -> torch.Tensor:
        """query [B, Hq, S, D], key [B, Hkv, S, D], value [B, Hkv, S, Dv], position [B, S] -> [B, Hq, S, Dv].

        `visible` is any tensor whose last size counts the tokens in the store's reach: with the new one for
        S = 1, without the new ones for a chunk; `lengths` [B] counts them row by row where a step's rows
        differ. `recent` is the number of newest tokens that a chunk doesn't evict, by default the rule's.
        `sink` [Hq] is one more logit a query head, if the model learned some. `slot` [B, Hkv, 1] is where a
        single token is written, if the layer is bounded. `store` is of the rule's kind, changed in place.
        """
        slots = self.rule.store_type(*store)
        score = SCORES[self.rule.score].function(key, value, position, filters)
        tokens = (key, value, score, position)
        if query.shape[2] == 1:
            place = slot if self.rule.is_bounded else slot_of_position(slots.positions, position)
            assert place is not None, "a token of a bounded layer is told its slot"
            write(slots, place, *tokens)
            out, lse = self._over_slots(slots, visible.shape[-1], lengths, query, position)
        else:
            out, lse = self._over_slots_and_chunk(slots, visible.shape[-1], query, key, value, position)
            if self.rule.is_bounded:
                protection = Protection(self.rule.recent if recent is None else recent, self.rule.sinks)
                keep_best(slots, protection, *tokens)
            else:
                append(slots, *tokens)
        return weigh_with_sink(out, lse, sink)

    def _over_slots(
        self,
        slots: AnySlots,
        count: int,
        lengths: torch.Tensor | None,
        query: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the first `count` slots, of which row b has filled `lengths[b]`."""
        filled = slots.first(count)
        bias = None if lengths is None else length_bias(lengths, filled.keys.shape[2])
        if self.slopes is not None:
            distance = distance_bias(position, filled.positions, self.slopes)
            bias = distance if bias is None else distance + bias
        return self.reading.attend_slots(query, filled, bias)

    def _over_slots_and_chunk(
        self,
        slots: AnySlots,
        count: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A chunk's attention over the first `count` slots and, causally, over itself."""
        # Kernels want a key, so an empty store shows one slot, which must weigh nothing.
        past, past_lse = self._over_slots(slots, torch.sym_max(count, 1), None, query, position)
        empty = (slots.positions[:, :, :1] < 0).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        past_lse = past_lse.masked_fill(empty, float("-inf"))
        own, own_lse = self._over_chunk(query, key, value, position)
        return join(past, past_lse, own, own_lse)

    def _over_chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.slopes is None:
            return self.reading.attend(query, key, value, causal=True)
        later = position[:, None, None, :] > position[:, None, :, None]
        bias = distance_bias(position, position[:, None], self.slopes) + hiding(later)
        return self.reading.attend(query, key, value, bias=bias)
