"""Attention of a layer that keeps keys in slots: over the slots and, for a chunk, over the chunk itself."""

import torch
from torch import nn

from ..kernels.distance_bias import distance_bias
from ..kernels.join import join
from .kernel_call import KernelCall, hiding_bias, weigh_with_sink
from .layer_inputs import split
from .slots import Protection, SlotRule, append, keep_best, slot_of_position, write
from .smoothing import smooth
from .store_kind import StoreKind, first_slots, with_tensors


class SlotAttention(nn.Module):
    """Attention of one layer over its slots, which evicts as it reads if the layer is bounded.

    A single token is written to the slot given as `slot`, the one with the lowest score, and then attends to
    the store. A chunk attends to the store and to itself; then the best keys of both are kept. Either way the
    store then holds, of all tokens seen, the first `sinks`, the newest `recent`, and those of the rest with
    the highest scores.
    """

    bias: torch.Tensor | None

    def __init__(self, kernel_call: KernelCall, rule: SlotRule) -> None:
        super().__init__()
        self.kernel_call, self.rule = kernel_call, rule
        bias = kernel_call.form.bias
        self.register_buffer("bias", None if bias is None else bias.numbers(), persistent=False)

    @property
    def sharing_key(self) -> tuple[object, ...]:
        """A key that is equal for two layers that run the same code."""
        return (type(self), self.kernel_call, self.rule)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        """The output [B, Hq, S, Dv] for query [B, Hq, S, D], key [B, Hkv, S, D] and value [B, Hkv, S, Dv].

        `inputs` are the fields of `LayerInputs`, then the tensors of the rule's store, which change in place.
        """
        (position, visible, lengths, recent, filters, sink, smoothing, slot), store = split(inputs)
        slots = with_tensors(self.rule.store_type, store)
        score = self.rule.score(key, value, position, filters).float()
        query, key = smooth(query, key, smoothing)
        tokens = (key, value, score, position)
        if query.shape[2] == 1:
            target = slot if self.rule.is_bounded else slot_of_position(slots.positions, position)
            assert target is not None, "a token of a bounded layer is told its slot"
            write(slots, target, *tokens)
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
        slots: StoreKind,
        count: int,
        lengths: torch.Tensor | None,
        query: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the first `count` slots; `lengths` [B] counts each row's tokens, if rows differ."""
        filled = first_slots(slots, count)
        if lengths is not None and self.rule.is_bounded:
            lengths = _filled(filled)  # rows may have budgets of their own
        bias = None if self.bias is None else distance_bias(self.bias, position, filled.positions)
        return self.kernel_call.attend_slots(query, filled, bias, lengths)

    def _over_slots_and_chunk(
        self,
        slots: StoreKind,
        count: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of a chunk over the first `count` slots and, causally, over itself."""
        # Kernels need a key, so an empty store shows one slot, whose weight is then set to zero.
        past, past_lse = self._over_slots(slots, torch.sym_max(count, 1), None, query, position)
        empty = (slots.positions[:, :, :1] < 0).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        past_lse = past_lse.masked_fill(empty, float("-inf"))
        own, own_lse = self._over_chunk(query, key, value, position)
        return join(past, past_lse, own, own_lse)

    def _over_chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.bias is None:
            return self.kernel_call.attend(query, key, value, causal=True)
        later = position[:, None, None, :] > position[:, None, :, None]
        bias = distance_bias(self.bias, position, position[:, None]) + hiding_bias(later)
        return self.kernel_call.attend(query, key, value, bias=bias)


def _filled(slots: StoreKind) -> torch.Tensor:
    """The number of filled slots of each row, [B]; it is the same in every head."""
    return (slots.positions[:, 0] >= 0).sum(-1)
