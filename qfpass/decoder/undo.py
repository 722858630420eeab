"""Undo: keep what a call is about to overwrite until the call has succeeded.

A step keeps one slot per head. A longer call, or a step that first moves stored keys, keeps a copy of all
stores, unless the session's journal keeps what it overwrites. A call on an empty session keeps nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ..sessions.overwritten import Overwritten
from ..sessions.rows import stepping
from ..sessions.stores import Stores
from .overwritten_slots import OverwriteFinder

if TYPE_CHECKING:
    from ..sessions.session import Session


class Undo:
    """A copy of what a call may overwrite in `session`, made before the call.

    `tokens`: how many the call reads in each row. `moves`: it moves stored keys first.

    Attributes:
        overwritten: what the step will overwrite; None for other calls, and for steps that move stored keys.
    """

    def __init__(
        self, session: "Session", watch: OverwriteFinder, tokens: Sequence[int], moves: bool
    ) -> None:
        self._session, self._before = session, session.state
        self._copies = Stores()
        self.overwritten: Overwritten | None = None
        if session.tokens_seen == 0:
            return
        if max(tokens) == 1 and not moves:
            rows = stepping(session.rows, [row for row, count in enumerate(tokens) if count])
            self.overwritten = watch(session.stores, rows, session.row_sizes)
        elif max(tokens) > session.take_back or moves:
            self._copies = session.copied_stores()

    def restore(self, turn: AbstractContextManager[None]) -> None:
        """Restore the session to its state before the call, inside the context `turn`."""
        session = self._session
        with session.restoring(self._before, turn):
            if self.overwritten is not None:
                self.overwritten.restore(session.stores, self.overwritten.rows)
            elif self._copies:
                self._before.stores.copy_(self._copies)
            else:
                for piece in reversed(session.journal.pieces[len(self._before.journal.pieces) :]):
                    piece.restore(session.stores, piece.rows)
