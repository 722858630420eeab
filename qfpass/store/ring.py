"""The store of a sliding or chunked layer: a ring with the last w tokens, position p in slot p mod w.

keys [B, Hkv, w, D], values [B, Hkv, w, Dv]. The position that a slot holds follows from the newest position.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .kv_form import KVForm


class Ring(NamedTuple):
    """The tensors of one layer's ring, in the model's dtype."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class RingRule:
    """How a sliding or chunked layer keeps keys: exactly the newest `slots` tokens.

    If `chunked`, a token sees only the tokens of its own chunk of `slots` tokens, counted from position 0.
    """

    slots: int
    chunked: bool = False
    needs_filters = False
    is_bounded = False  # a session's budget doesn't apply: the window is exact
    share = 1.0
    store_type = Ring

    @property
    def score(self) -> str:
        """What reports show as the layer's score: no key is ranked."""
        return "chunk" if self.chunked else "window"

    def token_nbytes(self, form: KVForm) -> int:
        """Bytes of one token's keys and values."""
        return form.kv_heads * (form.head_dim + form.value_dim) * form.dtype.itemsize

    def allocate(self, batch: int, form: KVForm) -> Ring:
        """An empty ring for `batch` rows."""
        heads = (batch, form.kv_heads, self.slots)
        return Ring(
            torch.zeros(*heads, form.head_dim, dtype=form.dtype, device=form.device),
            torch.zeros(*heads, form.value_dim, dtype=form.dtype, device=form.device),
        )

    def clear(self, store: Ring, slots: int | None = None) -> None:
        """Zero the store in place; `slots` isn't used."""
        store.keys.zero_()
        store.values.zero_()


def held_positions(ring: Ring, following: torch.Tensor) -> torch.Tensor:
    """The position in each slot, [B, Hkv, w] int32, -1 if it is empty; row b goes on at `following[b]`."""
    heads, slots = ring.keys.shape[1:3]
    newest, slot = following[:, None] - 1, torch.arange(slots, device=ring.keys.device)
    held = (newest - (newest - slot) % slots).clamp(min=-1)
    return held.to(torch.int32)[:, None, :].expand(-1, heads, -1)


def write_token(ring: Ring, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor) -> None:
    """Write one token a row over the oldest one, in place."""
    row = torch.arange(key.shape[0], device=key.device)[:, None, None]
    head = torch.arange(key.shape[1], device=key.device)[None, :, None]
    slot = (position % ring.keys.shape[2])[:, None, :]
    ring.keys[row, head, slot] = key
    ring.values[row, head, slot] = value


def keys_in_order(ring: Ring, position: torch.Tensor, seen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the tokens held, oldest first: [B, Hkv, min(seen, w), D or Dv].

    `position` [B, S] are the positions of the tokens that follow, the same in every row.
    """
    slots = ring.keys.shape[2]
    held = torch.sym_min(seen, slots)
    order = (position[0, 0] - held + torch.arange(held, device=position.device)) % slots
    return ring.keys[:, :, order], ring.values[:, :, order]


def write_chunk(ring: Ring, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor) -> None:
    """Write a chunk of any length in place, so that each slot holds the newest token that belongs in it."""
    slots = ring.keys.shape[2]
    first, newest = position[:, :1], position[:, -1:]
    slot = torch.arange(slots, device=position.device)[None]
    # The newest position that belongs in each slot. If it lies before the chunk, the slot keeps its token.
    due = newest - (newest - slot) % slots
    token = (due - first).clamp(min=0)[:, None, :, None]
    fresh = (due >= first)[:, None, :, None]
    for held, new in ((ring.keys, key), (ring.values, value)):
        wanted = token.expand(-1, new.shape[1], -1, new.shape[3])
        held.copy_(torch.where(fresh, new.gather(2, wanted), held))
