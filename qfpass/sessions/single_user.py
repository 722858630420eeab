"""One thread uses a session at a time, another may cancel it, and no one uses a broken one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CancelledError, SessionError


class SessionLock:
    """A session's lock.

    Attributes:
        is_broken: whether the undo of a failed call has begun and has not ended.
    """

    def __init__(self) -> None:
        self._user = threading.RLock()
        self._guard = threading.Lock()  # guards _uses and _is_cancelled
        self._uses, self._is_cancelled = 0, False
        self.is_broken = False

    @contextmanager
    def hold(self, allow_broken: bool = False) -> Iterator[None]:
        """A context that holds the session for this thread, which may hold it already.

        `allow_broken`: the use is allowed on a broken session, since it repairs it.

        Raises:
            SessionError: another thread holds it, or it is broken and `allow_broken` is False.
        """
        if not self._user.acquire(blocking=False):
            raise SessionError(
                "the session is in use by another thread: give each thread a session of its own (fork() "
                "makes one that stands at the same place)."
            )
        try:
            self._count(1)
            if self.is_broken and not allow_broken:
                raise SessionError("the session's undoing of a failed call was interrupted: reset() it.")
            yield
        finally:
            self._count(-1)
            self._user.release()

    def _count(self, uses: int) -> None:
        with self._guard:
            self._uses += uses
            if self._uses == 0:
                self._is_cancelled = False

    def cancel(self) -> bool:
        """Let `refuse_if_cancelled` raise until the session is released; True if a thread holds it."""
        with self._guard:
            self._is_cancelled = self._uses > 0
            return self._is_cancelled

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError if another thread has called `cancel` during this use."""
        if self._is_cancelled:
            raise CancelledError(
                "the call was cancelled: its session stands where it stood before. Call again to read on."
            )
