"""A lock that threads get in turn."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class InTurn:
    """A lock that a thread which lets go of it gets again only after one that waits.

    A plain lock goes to whoever asks first, which is the thread that has just let go of it.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()  # held by the one that waits longest
        # The thread that Ctrl-C left holding it may take it again.
        self._user = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; not to be asked for by a thread that holds it."""
        with self._next:
            self._user.acquire()
        try:
            yield
        finally:
            self._user.release()
