"""An exact ring for a sliding or chunked layer: the last w tokens, that at position p in slot p mod w.

keys [B, Hkv, w, D], values [B, Hkv, w, Dv]; which position a slot holds follows from the tokens seen.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .reading import Reading, hiding, length_bias, weigh_with_sink


class Ring(NamedTuple):
    """The tensors of one sliding layer's store."""

    keys: torch.Tensor
    values: torch.Tensor

    @staticmethod
    def slot_nbytes(head_dim: int, value_dim: int, dtype: torch.dtype) -> int:
        """Bytes of a slot's key and value."""
        return (head_dim + value_dim) * dtype.itemsize

    @property
    def kv_nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True)
class RingRule:
    """How a sliding layer keeps keys: the newest `slots`, exactly its window.

    `chunked`: a token sees only those of its own chunk of `slots` tokens, counted from position 0.
    """

    slots: int
    chunked: bool = False
    needs_filters = False
    is_bounded = False  # a session's budget doesn't apply: the window is exact
    share = 1.0
    store_type = Ring

    @property
    def score(self) -> str:
        return "chunk" if self.chunked else "window"

    def allocate(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Ring:
        """An empty ring for `batch` rows."""
        heads = (batch, kv_heads, self.slots)
        return Ring(
            torch.zeros(*heads, head_dim, dtype=dtype, device=device),
            torch.zeros(*heads, value_dim, dtype=dtype, device=device),
        )

    def clear(self, store: Ring, slots: int | None = None) -> None:
        """Empty the store in place."""
        store.keys.zero_()
        store.values.zero_()


class RingAttention(nn.Module):
    """Attention of one layer over its ring; nothing that its window or chunk shows is ever lost."""

    def __init__(self, reading: Reading, rule: RingRule) -> None:
        super().__init__()
        self.reading, self.rule = reading, rule

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
        recent: None,
        filters: None,
        sink: torch.Tensor | None,
        slot: None,
        *store: torch.Tensor,
    ) -> torch.Tensor:
        """query [B, Hq, S, D], key [B, Hkv, S, D], value [B, Hkv, S, Dv], position [B, S] -> [B, Hq, S, Dv].

        `visible`, `lengths` and `sink` as for `SlotAttention`; `store` is a `Ring`, changed in place.
        """
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
        """A token's attention over the first `count` slots, its own chunk's only if chunked."""
        keys, values = ring.keys[:, :, :count], ring.values[:, :, :count]
        if self.rule.chunked:
            # A chunk starts at slot 0, so what lies past the newest token is of the chunk before.
            lengths = position[:, 0] % self.rule.slots + 1
        bias = None if lengths is None else length_bias(lengths, keys.shape[2])
        return self.reading.attend(query, keys, values, bias=bias)

    def _over_ring_and_chunk(
        self,
        ring: Ring,
        count: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past_key, past_value = in_order(ring, position, count)
        keys, values = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        if not self.rule.chunked:
            return self.reading.attend(query, keys, values, window=self.rule.slots)
        newest = position[:, -1:]
        key_position = newest - keys.shape[2] + 1 + torch.arange(keys.shape[2], device=position.device)
        here, there = position[:, None, :, None], key_position[:, None, None, :]
        hidden = (there > here) | (there // self.rule.slots != here // self.rule.slots)
        return self.reading.attend(query, keys, values, bias=hiding(hidden))


def held_positions(ring: Ring, following: torch.Tensor) -> torch.Tensor:
    """Which position each slot holds, [B, Hkv, w] int32, -1 where none; row b's next is `following[b]`."""
    heads, slots = ring.keys.shape[1:3]
    newest, slot = following[:, None] - 1, torch.arange(slots, device=ring.keys.device)
    held = (newest - (newest - slot) % slots).clamp(min=-1)
    return held.to(torch.int32)[:, None, :].expand(-1, heads, -1)


def write_token(ring: Ring, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor) -> None:
    """Overwrite the oldest token."""
    row = torch.arange(key.shape[0], device=key.device)[:, None, None]
    head = torch.arange(key.shape[1], device=key.device)[None, :, None]
    slot = (position % ring.keys.shape[2])[:, None, :]
    ring.keys[row, head, slot] = key
    ring.values[row, head, slot] = value


def in_order(ring: Ring, position: torch.Tensor, seen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens held, oldest first: [B, Hkv, min(seen, w), D] keys and values.

    Every row of the batch stands at the same position.
    """
    slots = ring.keys.shape[2]
    held = torch.sym_min(seen, slots)
    order = (position[0, 0] - held + torch.arange(held, device=position.device)) % slots
    return ring.keys[:, :, order], ring.values[:, :, order]


def write_chunk(ring: Ring, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor) -> None:
    """Bring every slot up to date with a chunk of any length, longer or shorter than the window."""
    slots = ring.keys.shape[2]
    first, newest = position[:, :1], position[:, -1:]
    slot = torch.arange(slots, device=position.device)[None]
    # The newest position that belongs in each slot; if it lies in the chunk, the slot changes.
    due = newest - (newest - slot) % slots
    token = (due - first).clamp(min=0)[:, None, :, None]
    fresh = (due >= first)[:, None, :, None]
    for held, new in ((ring.keys, key), (ring.values, value)):
        wanted = token.expand(-1, new.shape[1], -1, new.shape[3])
        held.copy_(torch.where(fresh, new.gather(2, wanted), held))
