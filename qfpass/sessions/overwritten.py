"""What reading a few tokens overwrites in the stores: the slots, and a copy of what they held before."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from ..store.layer import Rule
from ..store.ring import Ring, RingRule
from ..store.slots import (
    Protection,
    SlotRule,
    exchange,
    put,
    slot_of_position,
    slot_to_replace,
    worst_slots,
)
from ..store.store_kind import with_tensors
from .stores import Stack, Store, Stores


class SlotContents(NamedTuple):
    """Slots [L, R, Hkv, n] of R rows of a stack, and each tensor's contents there, [L, R, Hkv, n, ...]."""

    slot: torch.Tensor
    tensors: tuple[torch.Tensor, ...]


class Overwritten(NamedTuple):
    """A copy of what reading n tokens into R rows overwrites; n is at most the newest that are never evicted.

    The tokens take exactly these slots, since they are protected when all n are read.

    Attributes:
        rows: the indices of the rows.
        position: the positions of the tokens, [R, n] int64.
        held: the slots and their contents before, for each stack.
    """

    rows: tuple[int, ...]
    position: torch.Tensor
    held: tuple[SlotContents, ...]

    @property
    def tokens(self) -> int:
        """The number n of tokens."""
        return self.position.shape[1]

    def write_slots(self, stores: Stores) -> list[torch.Tensor]:
        """The slots of each bounded stack, as `Stores.set_write_slots` takes them for a single token."""
        held = zip(self.held, stores.stacks, strict=True)
        return [contents.slot for contents, stack in held if stack.rule.is_bounded]

    def of_rows(self, rows: Sequence[int]) -> Self:
        """The part of these rows, which are some of its own."""
        if tuple(rows) == self.rows:
            return self
        return self._chosen([self.rows.index(row) for row in rows], rows)

    def reordered(self, chosen: Sequence[int]) -> Self:
        """What it is once row i of the session is what row chosen[i] was."""
        rows = [i for i, row in enumerate(chosen) if row in self.rows]
        return self._chosen([self.rows.index(chosen[i]) for i in rows], rows)

    def _chosen(self, own: Sequence[int], rows: Sequence[int]) -> Self:
        index = torch.tensor(own, dtype=torch.long, device=self.position.device)
        held = tuple(
            SlotContents(h.slot[:, at], tuple(t[:, at] for t in h.tensors))
            for h in self.held
            for at in (index.to(h.slot.device),)
        )
        return type(self)(tuple(rows), self.position[index], held)

    def cloned(self) -> Self:
        """A copy in memory of its own: what finds a step's slots writes over what it found before."""
        held = tuple(SlotContents(h.slot.clone(), tuple(t.clone() for t in h.tensors)) for h in self.held)
        return self._replace(position=self.position.clone(), held=held)

    def with_contents_now(self, stores: Stores) -> Self:
        """The same slots, of all rows of `stores`, with what they hold now."""
        held = []
        for stack, (slot, _) in zip(stores.stacks, self.held, strict=True):
            layers, flat = (len(stack.layers), -1), slot.flatten(0, 1)
            now = (contents_at(tensor.flatten(0, 1), flat).unflatten(0, layers) for tensor in stack.store)
            held.append(SlotContents(slot, tuple(now)))
        return self._replace(held=tuple(held))

    def restore(self, stores: Stores, rows: Sequence[int]) -> None:
        """Write the contents before back into the stores of these rows, in place."""
        if not rows:
            return
        part = self.of_rows(rows)
        for stack, held in zip(stores.stacks, part.held, strict=True):
            layers, _, heads, _ = held.slot.shape
            device = held.slot.device
            layer = torch.arange(layers, device=device)[:, None, None, None]
            row = torch.tensor(part.rows, device=device)[:, None, None]
            head = torch.arange(heads, device=device)[:, None]
            for tensor, before in zip(stack.store, held.tensors, strict=True):
                tensor[layer, row, head, held.slot] = before

    def restore_all_but(self, stores: Stores, row: int, kept: int, recent: int) -> "Overwritten":
        """Take the row's tokens but the first `kept` out of the stores, as if those alone had been read.

        Nothing that was read later may be in the stores.

        Returns:
            What reading the kept tokens overwrites.
        """
        part = self.of_rows((row,))
        tokens = [
            _first_tokens(stack, row, contents.slot[:, 0], kept)
            for stack, contents in zip(stores.stacks, part.held, strict=True)
        ]
        part.restore(stores, (row,))
        position = part.position[:, :kept]
        before = overwritten_by(stores, (row,), position, recent)
        for stack, contents, kept_tokens in zip(stores.stacks, before.held, tokens, strict=True):
            store = _of_row(stack, row)
            if isinstance(stack.rule, SlotRule) and stack.rule.is_bounded:
                protection = Protection(recent, stack.rule.sinks)
                last = position[:, None, -1:].to(contents.slot.device)
                exchange(store, protection, kept_tokens, last)  # type: ignore[arg-type]
            else:
                put(store, contents.slot[:, 0], kept_tokens)
        return before


def overwritten_by(stores: Stores, rows: Sequence[int], position: torch.Tensor, recent: int) -> Overwritten:
    """What reading the tokens at `position` [R, n] into `rows` will overwrite; found eagerly.

    `recent`: how many of the newest tokens are never evicted, n or more.
    """
    index = torch.tensor(tuple(rows), device=position.device)
    held = []
    for stack in stores.stacks:
        layers, device = len(stack.layers), stack.device
        part = with_tensors(type(stack.store), (t[:, index.to(device)].flatten(0, 1) for t in stack.store))
        slot = slots_taken(stack.rule, part, recent, position.to(device).repeat(layers, 1))
        contents = (contents_at(tensor, slot).unflatten(0, (layers, -1)) for tensor in part)
        held.append(SlotContents(slot.unflatten(0, (layers, -1)), tuple(contents)))
    return Overwritten(tuple(rows), position, tuple(held))


def slots_taken(rule: Rule, store: Store, recent: int | torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The slots [B, Hkv, n] that the tokens at position [B, n] take; recent is a number or [B, 1]."""
    if isinstance(store, Ring):
        return (position % rule.slots)[:, None].expand(-1, store.keys.shape[1], -1)
    assert not isinstance(rule, RingRule)
    if not rule.is_bounded:
        return slot_of_position(store.positions, position)
    protection = Protection(recent if isinstance(recent, int) else recent[:, None], rule.sinks)
    if position.shape[1] == 1:
        return slot_to_replace(store.scores, store.positions, protection, position)
    return worst_slots(store, protection, position[:, None, -1:])[1][..., : position.shape[1]]


def contents_at(tensor: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """The contents [B, Hkv, n, ...] of a tensor [B, Hkv, C, ...] at slot [B, Hkv, n]."""
    wide = slot if tensor.dim() == 3 else slot[..., None].expand(-1, -1, -1, tensor.shape[3])
    return tensor.gather(2, wide)


def _of_row(stack: Stack, row: int) -> Store:
    """Views [L, Hkv, C, ...] of one row of a stack."""
    return with_tensors(type(stack.store), (tensor[:, row] for tensor in stack.store))


def _first_tokens(stack: Stack, row: int, slot: torch.Tensor, count: int) -> Store:
    """The first `count` of the tokens at slot [L, Hkv, n] of a row, as a store of so many slots."""
    store = _of_row(stack, row)
    if not isinstance(store, Ring):  # a ring's slots are in the order of the text already
        slot = slot.gather(2, contents_at(store.positions, slot).argsort(-1))
    return with_tensors(type(store), (contents_at(tensor, slot[..., :count]) for tensor in store))
