"""A fair lock: threads that wait get it in turn."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """A lock that a thread can't take again at once while another thread waits for it.

    A plain lock goes to the first that asks, usually the thread that has just released it.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()  # held by the thread whose turn is next
        # Reentrant: if Ctrl-C keeps a thread from releasing it, that thread can still take it again.
        self._user = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context that holds the lock; a thread that holds it must not enter it again."""
        with self._next:
            self._user.acquire()
        try:
            yield
        finally:
            self._user.release()
