"""A bounded store: a fixed number of slots a kv head, the lowest score overwritten in place.

keys [B, Hkv, C, D], values [B, Hkv, C, Dv], scores [B, Hkv, C] float32, positions [B, Hkv, C] int32,
-1 where a slot is empty. Filled slots are always a prefix, so a slice shows them without a mask.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .scores import SCORES


class Slots(NamedTuple):
    """The tensors of one layer's bounded store."""

    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class SlotRule:
    """How one layer keeps keys: slots a head, protected tokens, score by name.

    A layer that isn't bounded keeps every key that its slots take; a session's budget doesn't apply to it.
    `share` is its part of the slots that scores fill, over the mean of all layers.
    """

    slots: int
    recent: int
    sinks: int
    score: str
    is_bounded: bool = True
    share: float = 1.0

    @property
    def needs_filters(self) -> bool:
        return SCORES[self.score].needs_filters

    def allocate(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Slots:
        """An empty store for `batch` rows."""
        heads = (batch, kv_heads, self.slots)
        return Slots(
            torch.zeros(*heads, head_dim, dtype=dtype, device=device),
            torch.zeros(*heads, value_dim, dtype=dtype, device=device),
            torch.full(heads, float("-inf"), device=device),
            torch.full(heads, -1, dtype=torch.int32, device=device),
        )

    def clear(self, store: Slots, slots: int | None = None) -> None:
        """Empty the store in place and use its first `slots` slots only, all of them by default.

        An unused slot scores inf, so that no token is ever better.
        """
        store.keys.zero_()
        store.values.zero_()
        store.scores.fill_(float("-inf"))
        store.scores[..., slots or self.slots :] = float("inf")
        store.positions.fill_(-1)


class Protection(NamedTuple):
    """Tokens never evicted: the `recent` newest, a number or a tensor [], and the first `sinks`."""

    recent: int | torch.Tensor
    sinks: int


def replace_lowest(
    slots: Slots,
    protection: Protection,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Write one token over the unprotected slot with the lowest score."""
    _write(slots, slot_to_replace(slots, protection, position), key, value, score, position)


def slot_to_replace(slots: Slots, protection: Protection, position: torch.Tensor) -> torch.Tensor:
    """The slot [B, Hkv, 1] that a token at position [B, 1] will take; empty slots, -inf, go first."""
    protected = _protected(slots.positions, position[:, None, -1:], protection)
    return slots.scores.masked_fill(protected, float("inf")).argmin(-1, keepdim=True)


def keep_best(
    slots: Slots,
    protection: Protection,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Keep the best of store and chunk (S <= C), moving only what changes.

    The chunk's tokens, best first, are paired with the slots, worst first; the pairs in which the token
    is better are exactly those that a top-C over both would exchange.
    """
    newest = position[:, None, -1:]
    chunk_position = position[:, None, :].expand_as(score)
    chunk_rank = score.masked_fill(_protected(chunk_position, newest, protection), float("inf"))
    slot_rank = slots.scores.masked_fill(_protected(slots.positions, newest, protection), float("inf"))
    best, token = chunk_rank.sort(dim=-1, descending=True, stable=True)
    # Stable, so that equal scores (all empty slots) are filled from the front.
    worst, slot = slot_rank.sort(dim=-1, stable=True)
    length = score.shape[-1]
    worst, slot = worst[..., :length], slot[..., :length]
    better = best > worst
    _exchange(slots, slot, token, better, key, value, score, chunk_position)


def _protected(positions: torch.Tensor, newest: torch.Tensor, protection: Protection) -> torch.Tensor:
    held = positions >= 0
    return held & ((positions > newest - protection.recent) | (positions < protection.sinks))


def _write(
    slots: Slots,
    slot: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    row = torch.arange(slot.shape[0], device=slot.device)[:, None, None]
    head = torch.arange(slot.shape[1], device=slot.device)[None, :, None]
    position = position[:, None, :].expand_as(slot).to(slots.positions.dtype)
    # Indexed assignment is what Inductor does in place, without a copy of the store.
    slots.keys[row, head, slot] = key
    slots.values[row, head, slot] = value
    slots.scores[row, head, slot] = score
    slots.positions[row, head, slot] = position


def _exchange(
    slots: Slots,
    slot: torch.Tensor,
    token: torch.Tensor,
    better: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    row = torch.arange(slot.shape[0], device=slot.device)[:, None, None]
    head = torch.arange(slot.shape[1], device=slot.device)[None, :, None]
    fresh = (key[row, head, token], value[row, head, token], score[row, head, token])
    place = position.gather(-1, token).to(slots.positions.dtype)
    wide = better[..., None]
    slots.keys[row, head, slot] = torch.where(wide, fresh[0], slots.keys[row, head, slot])
    slots.values[row, head, slot] = torch.where(wide, fresh[1], slots.values[row, head, slot])
    slots.scores[row, head, slot] = torch.where(better, fresh[2], slots.scores[row, head, slot])
    slots.positions[row, head, slot] = torch.where(better, place, slots.positions[row, head, slot])
