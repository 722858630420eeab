"""A store with a fixed number of slots a kv head; once all are filled, the lowest score is overwritten.

keys [B, Hkv, C, D], values [B, Hkv, C, Dv], scores [B, Hkv, C] float32, positions [B, Hkv, C] int32,
-1 where a slot is empty. The filled slots are always the first ones, so a slice shows them without a mask.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..errors import ConfigError
from .kv_form import KVForm
from .scores import Score, score_named
from .store_kind import StoreKind, empty_store, fields_of, token_nbytes


class Slots(NamedTuple):
    """The tensors of one layer's bounded store, in the model's dtype."""

    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(
        cls, keys: torch.Tensor, values: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor
    ) -> "Slots":
        """Slots that hold these tensors."""
        return cls(keys, values, scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as a kernel reads them: the tensors themselves; `dtype` isn't used."""
        return self.keys, self.values


SLOT_NBYTES = 8  # a slot's score and position, beside its key and value


@dataclass(frozen=True)
class SlotRule:
    """How one layer keeps keys in slots.

    Attributes:
        slots: slots a head.
        recent, sinks: how many of the newest and of the first tokens are never evicted.
        score: ranks the others; a name is looked up in `SCORES`.
        is_bounded: False if there is a slot for every token; a session's budget doesn't apply then.
        share: the layer's number of slots that scores fill, relative to the mean of all layers.
        store_type: the class of the layer's store.
    """

    slots: int
    recent: int
    sinks: int
    score: Score
    is_bounded: bool = True
    share: float = 1.0
    store_type: type[StoreKind] = field(default=Slots, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", score_named(self.score))
        if self.is_bounded and self.slots <= self.recent + self.sinks:
            raise ConfigError(
                f"{self.slots} slots are too few for {self.recent} recent tokens, {self.sinks} sinks and one "
                "more: give more slots."
            )

    @property
    def needs_filters(self) -> bool:
        """Whether the score reads filters."""
        return self.score.filters is not None

    def __str__(self) -> str:
        kind = self.store_type
        return f"{self!r} in {kind.__name__}({', '.join(fields_of(kind))})"

    def token_nbytes(self, form: KVForm) -> int:
        """Bytes of what the slots hold of one token's keys and values."""
        return token_nbytes(self.store_type, form)

    def allocate(self, batch: int, form: KVForm) -> StoreKind:
        """An empty store for `batch` rows."""
        return empty_store(self.store_type, batch, self.slots, form)

    def clear(self, store: StoreKind, slots: int | None = None) -> None:
        """Empty the store in place and let only its first `slots` slots be used, all of them by default.

        An unused slot scores inf, so that no token ever takes it.
        """
        for tensor in store:
            tensor.zero_()
        store.scores.fill_(float("-inf"))
        store.scores[..., slots or self.slots :] = float("inf")
        store.positions.fill_(-1)


class Protection(NamedTuple):
    """Tokens that are never evicted: the newest `recent` and the first `sinks`.

    `recent` is an int, or a tensor [], or [B, 1, 1] for rows that differ.
    """

    recent: int | torch.Tensor
    sinks: int


def append(
    slots: StoreKind,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Write tokens, in place, to the slots of their positions, in a store with a slot for every position."""
    write(slots, slot_of_position(slots.positions, position), key, value, score, position)


def slot_of_position(positions: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The slots [B, Hkv, S] of tokens at position [B, S] in a store with a slot for every position.

    A row that has no token in this step may stand past the last slot. It gets the last slot, whose contents
    the caller restores.
    """
    _, heads, slots = positions.shape
    return position.clamp(max=slots - 1)[:, None].expand(-1, heads, -1)


def slot_to_replace(
    scores: torch.Tensor, positions: torch.Tensor, protection: Protection, position: torch.Tensor
) -> torch.Tensor:
    """The slot [B, Hkv, 1] for a token at position [B, 1]: an empty one, else the worst unprotected one."""
    protected = _protected(positions, position[:, None, -1:], protection)
    return scores.masked_fill(protected, float("inf")).argmin(-1, keepdim=True)


def keep_best(
    slots: StoreKind,
    protection: Protection,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Keep the best C tokens of store and chunk (S <= C) in the store, in place, and move no others.

    The chunk's tokens, best first, are paired with the slots, worst first. The pairs in which the token
    is better are exactly those that a top-C over both would exchange.
    """
    chunk = _as_slots(slots, key, value, score, position)
    exchange(slots, protection, chunk, position[:, None, -1:])


def exchange(slots: StoreKind, protection: Protection, tokens: StoreKind, newest: torch.Tensor) -> None:
    """Keep the best C of the slots and of S <= C tokens, which are slots of the same class, in place.

    `newest`: the position of the last token read, [B, 1, 1].
    """
    token_rank = tokens.scores.masked_fill(_protected(tokens.positions, newest, protection), float("inf"))
    best, token = token_rank.sort(dim=-1, descending=True, stable=True)
    worst, slot = worst_slots(slots, protection, newest)
    length = tokens.scores.shape[-1]
    worst, slot = worst[..., :length], slot[..., :length]
    better = best > worst
    row, head = _rows_and_heads(slot)
    for held, new in zip(slots, tokens, strict=True):
        wins = better[..., None] if held.dim() == 4 else better
        held[row, head, slot] = torch.where(wins, new[row, head, token], held[row, head, slot])


def worst_slots(
    slots: StoreKind, protection: Protection, newest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ranks and indices [B, Hkv, C] of all slots, worst first; `newest` as in `exchange`."""
    rank = slots.scores.masked_fill(_protected(slots.positions, newest, protection), float("inf"))
    # Stable, so that equal scores (all empty slots) are filled from the front.
    worst, slot = rank.sort(dim=-1, stable=True)
    return worst, slot


def _protected(positions: torch.Tensor, newest: torch.Tensor, protection: Protection) -> torch.Tensor:
    held = positions >= 0
    # In the dtype of the positions, int32: a comparison with an int64 would widen all of them.
    oldest = (newest - protection.recent).to(positions.dtype)
    return held & ((positions > oldest) | (positions < protection.sinks))


def _as_slots(
    slots: StoreKind, key: torch.Tensor, value: torch.Tensor, score: torch.Tensor, position: torch.Tensor
) -> StoreKind:
    """The tokens as S slots of the store's class."""
    place = position[:, None, :].expand_as(score).to(slots.positions.dtype)
    return type(slots).of(key, value, score, place)


def write(
    slots: StoreKind,
    slot: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Write tokens, in place, to slot [B, Hkv, S]."""
    put(slots, slot, _as_slots(slots, key, value, score, position))


def put(store: Iterable[torch.Tensor], slot: torch.Tensor, tokens: Iterable[torch.Tensor]) -> None:
    """Put tokens, the tensors of S slots, into slot [B, Hkv, S] of a store, in place."""
    row, head = _rows_and_heads(slot)
    # Inductor does indexed assignment in place, without a copy of the store.
    for held, new in zip(store, tokens, strict=True):
        held[row, head, slot] = new


def _rows_and_heads(slot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and head indices that broadcast with slot [B, Hkv, n]."""
    row = torch.arange(slot.shape[0], device=slot.device)[:, None, None]
    head = torch.arange(slot.shape[1], device=slot.device)[None, :, None]
    return row, head
