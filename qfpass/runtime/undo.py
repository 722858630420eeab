"""Undo: what a call is about to overwrite, kept until it has succeeded.

A step overwrites one slot a head, known beforehand; longer calls on a session that holds tokens keep a
copy of its stores. A session without tokens needs nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..store.ring import Ring, RingRule
from ..store.slots import AnySlots, Protection, slot_to_replace

if TYPE_CHECKING:
    from .session import Session


class Overwritten:
    """What a step will overwrite in `session`: one slot a head, in every row."""

    def __init__(self, session: "Session") -> None:
        self._stores = session.stores
        position = torch.tensor([[row.position] for row in session.rows], device=session.device)
        self._slots = _slots_taken(session, position)
        self._kept = [
            [_at(tensor, slot) for tensor in store]
            for store, slot in zip(session.stores, self._slots, strict=True)
        ]

    def restore(self, rows: Sequence[int]) -> None:
        """Put it back in these rows."""
        for store, slot, kept in zip(self._stores, self._slots, self._kept, strict=True):
            row = torch.tensor(rows, device=slot.device)
            head = torch.arange(slot.shape[1], device=slot.device)[None, :, None]
            for tensor, before in zip(store, kept, strict=True):
                tensor[row[:, None, None], head, slot[row]] = before[row]


class Undo:
    """The way back to where `session` stands.

    Attributes:
        overwritten: what a step will overwrite, if the call is one and doesn't move stored keys.
    """

    def __init__(self, session: "Session", is_step: bool, moves: bool) -> None:
        self._session, self._before = session, session.state
        self._copies: tuple[AnySlots | Ring, ...] = ()
        self.overwritten: Overwritten | None = None
        if session.tokens_seen == 0:
            return
        if is_step and not moves:
            self.overwritten = Overwritten(session)
        else:
            self._copies = session.copied_stores()

    def restore(self) -> None:
        """Everything as it was before the call."""
        session = self._session
        with session.restoring(self._before):
            if self.overwritten is not None:
                self.overwritten.restore(list(range(len(session.rows))))
            for store, copy in zip(self._before.stores, self._copies, strict=False):
                for tensor, before in zip(store, copy, strict=True):
                    tensor.copy_(before)


def _slots_taken(session: "Session", position: torch.Tensor) -> list[torch.Tensor]:
    """The slot [B, Hkv, 1] of every store that the next token, at position [B, 1], takes."""
    taken = dict[int, torch.Tensor]()
    alike = defaultdict[tuple[torch.Size, Protection], list[int]](list)
    for i, (site, store) in enumerate(zip(session.sites, session.stores, strict=True)):
        rule = site.rule
        if isinstance(store, Ring) or isinstance(rule, RingRule):
            taken[i] = (position % rule.slots)[:, None, :].expand(-1, store.keys.shape[1], -1)
        else:
            recent = session.sizes.recent if rule.is_bounded else rule.recent
            alike[store.scores.shape, Protection(recent, rule.sinks)].append(i)
    # Layers of equal sizes together: a dozen operations on a processor cost what one does.
    for (shape, protection), layers in alike.items():
        scores, positions = (
            torch.cat([getattr(session.stores[i], name) for i in layers]) for name in ("scores", "positions")
        )
        slots = slot_to_replace(scores, positions, protection, position.repeat(len(layers), 1))
        taken.update(zip(layers, slots.split(shape[0]), strict=True))
    return [taken[i] for i in range(len(session.stores))]


def _at(tensor: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """What a tensor [B, Hkv, C, ...] holds at slot [B, Hkv, 1]."""
    wide = slot if tensor.dim() == 3 else slot[..., None].expand(-1, -1, -1, tensor.shape[3])
    return tensor.gather(2, wide)
