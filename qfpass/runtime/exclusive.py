"""One thread at a time, another that may stop it, and nobody after an undo that was interrupted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CancelledError, SessionError


class Exclusive:
    """Who may use a session.

    Attributes:
        is_broken: whether the undoing of a failed call has begun and not ended.
    """

    def __init__(self) -> None:
        self._user = threading.RLock()
        self._change = threading.Lock()  # of the two below
        self._uses, self._is_cancelled = 0, False
        self.is_broken = False

    @contextmanager
    def hold(self, mends: bool = False) -> Iterator[None]:
        """Hold the session for this thread, which may hold it already.

        Raises:
            SessionError: another thread holds it, or it is broken and this use doesn't mend it.
        """
        if not self._user.acquire(blocking=False):
            raise SessionError(
                "the session is in use by another thread: give each thread a session of its own (fork() "
                "makes one that stands at the same place)."
            )
        try:
            self._count(1)
            if self.is_broken and not mends:
                raise SessionError("the session's undoing of a failed call was interrupted: reset() it.")
            yield
        finally:
            self._count(-1)
            self._user.release()

    def _count(self, uses: int) -> None:
        with self._change:
            self._uses += uses
            if self._uses == 0:
                self._is_cancelled = False

    def cancel(self) -> bool:
        """Let `refuse_if_cancelled` raise, until whoever holds the session lets go; whether anybody does."""
        with self._change:
            self._is_cancelled = self._uses > 0
            return self._is_cancelled

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError in what another thread has cancelled."""
        if self._is_cancelled:
            raise CancelledError(
                "the call was cancelled: its session stands where it stood before. Call again to read on."
            )
