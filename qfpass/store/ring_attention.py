"""Attention of a sliding or chunked layer: over its ring and, for a chunk, over itself."""

import torch
from torch import nn

from .kernel_call import KernelCall, hiding_bias, weigh_with_sink
from .layer_inputs import split
from .ring import Ring, RingRule, keys_in_order, write_chunk, write_token


class RingAttention(nn.Module):
    """Attention of one layer over its ring, which holds every token of the layer's window or chunk."""

    def __init__(self, kernel_call: KernelCall, rule: RingRule) -> None:
        super().__init__()
        self.kernel_call, self.rule = kernel_call, rule

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

        `inputs` are the fields of `LayerInputs`, then the tensors of a `Ring`, which change in place.
        """
        (position, visible, lengths, _, _, sink, *_), store = split(inputs)
        ring = Ring(*store)
        if query.shape[2] == 1:
            write_token(ring, key, value, position)
            out, lse = self._over_ring(ring, visible.shape[-1], lengths, query, position)
        else:
            out, lse = self._over_ring_and_chunk(ring, visible.shape[-1], query, key, value, position)
            write_chunk(ring, key, value, position)
        return weigh_with_sink(out, lse, sink)

    def _over_ring(
        self,
        ring: Ring,
        count: int,
        lengths: torch.Tensor | None,
        query: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of one token over the first `count` slots, or over those of its own chunk if chunked."""
        keys, values = ring.keys[:, :, :count], ring.values[:, :, :count]
        if self.rule.chunked:
            # A chunk starts at slot 0, so slots past the newest token belong to the chunk before.
            lengths = position[:, 0] % self.rule.slots + 1
        return self.kernel_call.attend(query, keys, values, lengths=lengths)

    def _over_ring_and_chunk(
        self,
        ring: Ring,
        count: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = keys_in_order(ring, position, count)
        keys, values = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        if not self.rule.chunked:
            return self.kernel_call.attend(query, keys, values, window=self.rule.slots)
        newest = position[:, -1:]
        key_position = newest - keys.shape[2] + 1 + torch.arange(keys.shape[2], device=position.device)
        of_query, of_key = position[:, None, :, None], key_position[:, None, None, :]
        hidden = (of_key > of_query) | (of_key // self.rule.slots != of_query // self.rule.slots)
        return self.kernel_call.attend(query, keys, values, bias=hiding_bias(hidden))
