"""Undo: what a call is about to overwrite, kept until it has succeeded.

A step overwrites one slot a head, known beforehand; longer calls on a session that holds tokens keep a
copy of its stores. A session without tokens needs nothing.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..graph.rewrite import Rule
from ..store.ring import Ring, RingRule
from ..store.slots import Protection, slot_of_position, slot_to_replace
from .cuda_graph import CudaGraphs
from .stores import Stack, Store, Stores

if TYPE_CHECKING:
    from .session import Session


class Overwritten:
    """What a step will overwrite in `session`: one slot a head, in every row."""

    def __init__(self, session: "Session", graphs: CudaGraphs) -> None:
        self._batch = len(session.rows)
        stacks, recent = session.stores.stacks, session.sizes.recent
        position = torch.tensor([[row.position] for row in session.rows], device=session.device)

        def prepare() -> Callable[[torch.Tensor], list[_Kept]]:
            return lambda position: [_Kept.of(stack, recent, position) for stack in stacks]

        self._kept = graphs.run("undo", prepare, session.stores, position)

    def restore(self, rows: Sequence[int]) -> None:
        """Put it back in these rows."""
        for kept in self._kept:
            layers = len(kept.slot) // self._batch
            kept.restore([layer * self._batch + row for layer in range(layers) for row in rows])


class _Kept(NamedTuple):
    """One slot a head of a stack: the store [L * B, Hkv, C, ...], slot [L * B, Hkv, 1], what it holds."""

    store: Store
    slot: torch.Tensor
    before: list[torch.Tensor]

    @classmethod
    def of(cls, stack: Stack, recent: int, position: torch.Tensor) -> "_Kept":
        store = stack.flat
        slot = _slot_taken(stack.rule, store, recent, position.repeat(len(stack.layers), 1))
        return cls(store, slot, [_at(tensor, slot) for tensor in store])

    def restore(self, rows: Sequence[int]) -> None:
        row = torch.tensor(rows, device=self.slot.device)
        head = torch.arange(self.slot.shape[1], device=self.slot.device)[None, :, None]
        for tensor, before in zip(self.store, self.before, strict=True):
            tensor[row[:, None, None], head, self.slot[row]] = before[row]


def _slot_taken(rule: Rule, store: Store, recent: int, position: torch.Tensor) -> torch.Tensor:
    """The slot [B, Hkv, 1] of a store that the token at position [B, 1] takes."""
    if isinstance(store, Ring) or isinstance(rule, RingRule):
        return (position % rule.slots)[:, None].expand(-1, store.keys.shape[1], -1)
    if not rule.is_bounded:
        return slot_of_position(store.positions, position)
    return slot_to_replace(store.scores, store.positions, Protection(recent, rule.sinks), position)


class Undo:
    """The way back to where `session` stands.

    Attributes:
        overwritten: what a step will overwrite, if the call is one and doesn't move stored keys.
    """

    def __init__(self, session: "Session", graphs: CudaGraphs, is_step: bool, moves: bool) -> None:
        self._session, self._before = session, session.state
        self._copies = Stores()
        self.overwritten: Overwritten | None = None
        if session.tokens_seen == 0:
            return
        if is_step and not moves:
            self.overwritten = Overwritten(session, graphs)
        else:
            self._copies = session.copied_stores()

    def restore(self) -> None:
        """Everything as it was before the call."""
        session = self._session
        with session.restoring(self._before):
            if self.overwritten is not None:
                self.overwritten.restore(list(range(len(session.rows))))
            if self._copies:
                self._before.stores.copy_(self._copies)


def _at(tensor: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """What a tensor [B, Hkv, C, ...] holds at slot [B, Hkv, 1]."""
    wide = slot if tensor.dim() == 3 else slot[..., None].expand(-1, -1, -1, tensor.shape[3])
    return tensor.gather(2, wide)
