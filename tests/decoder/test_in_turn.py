"""A lock that threads get in turn."""

import threading
import time

import pytest

from qfpass.decoder.in_turn import FairLock


def test_who_lets_go_and_asks_again_comes_after_one_that_waits() -> None:
    lock, order = FairLock(), list[str]()

    def other() -> None:
        with lock.held():
            order.append("other")

    for _ in range(20):
        order.clear()
        with lock.held():
            thread = threading.Thread(target=other)
            thread.start()
            while not lock._next.locked():  # until it waits
                time.sleep(0)
            order.append("first")
        for _ in range(3):
            with lock.held():
                order.append("first")
        thread.join()
        assert order == ["first", "other", "first", "first", "first"]


def test_an_error_lets_go() -> None:
    lock = FairLock()
    with pytest.raises(KeyboardInterrupt), lock.held():
        raise KeyboardInterrupt
    thread = threading.Thread(target=lambda: lock.held().__enter__())
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
