"""One thread at a time, and nobody after an undo that was interrupted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import SessionError


class Exclusive:
    """Who may use a session.

    Attributes:
        is_broken: whether the undoing of a failed call has begun and not ended.
    """

    def __init__(self) -> None:
        self._user = threading.RLock()
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
            if self.is_broken and not mends:
                raise SessionError("the session's undoing of a failed call was interrupted: reset() it.")
            yield
        finally:
            self._user.release()
