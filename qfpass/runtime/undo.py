"""Undo: what a call is about to overwrite, kept until it has succeeded.

Of a step that is one slot a head; longer calls on a session that holds tokens keep a copy of its stores. A
session without tokens needs nothing.
"""

from typing import TYPE_CHECKING

from .overwritten import Overwritten, Watch
from .stores import Stores

if TYPE_CHECKING:
    from .session import Session


class Undo:
    """The way back to where `session` stands.

    Attributes:
        overwritten: what a step will overwrite, if the call is one and doesn't move stored keys.
    """

    def __init__(self, session: "Session", watch: Watch, is_step: bool, moves: bool) -> None:
        self._session, self._before = session, session.state
        self._copies = Stores()
        self.overwritten: Overwritten | None = None
        if session.tokens_seen == 0:
            return
        if is_step and not moves:
            self.overwritten = watch(session)
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
