"""Undo: keep what a call is about to overwrite until the call has succeeded.

A step keeps one slot per head. A longer call, or a step that first moves stored keys, keeps a copy of all
stores. A call on an empty session keeps nothing.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ..sessions.stores import Stores
from .overwritten_slots import OverwriteFinder, Overwritten

if TYPE_CHECKING:
    from ..sessions.session import Session


class Undo:
    """A copy of what a call may overwrite in `session`, made before the call.

    `is_step`: the call reads at most one token per row. `moves`: it moves stored keys first.

    Attributes:
        overwritten: what the step will overwrite; None for other calls, and for steps that move stored keys.
    """

    def __init__(self, session: "Session", watch: OverwriteFinder, is_step: bool, moves: bool) -> None:
        self._session, self._before = session, session.state
        self._copies = Stores()
        self.overwritten: Overwritten | None = None
        if session.tokens_seen == 0:
            return
        if is_step and not moves:
            self.overwritten = watch(session.stores, session.rows, session.row_sizes)
        else:
            self._copies = session.copied_stores()

    def restore(self, turn: AbstractContextManager[None]) -> None:
        """Restore the session to its state before the call, inside the context `turn`."""
        session = self._session
        with session.restoring(self._before, turn):
            if self.overwritten is not None:
                self.overwritten.restore(list(range(len(session.rows))))
            if self._copies:
                self._before.stores.copy_(self._copies)
