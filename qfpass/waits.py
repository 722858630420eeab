"""What takes long says so on standard error: what it is and what needs no such wait, then how far it is.

As a program, `python qfpass/waits.py WHAT COMMAND ...` runs a command that says nothing itself.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

T = TypeVar("T")
QUIET = "QFPASS_QUIET"  # an environment variable: anything in it, and no wait says a word
FIRST, EVERY = 1.0, 8.0  # seconds until a wait says what it is, and at most between lines from then on
SOON = 0.1  # seconds after which a wait that has left the word to another looks again

_waiting: list["Wait"] = []  # those that tell, or will
_telling: list["Wait"] = []  # those that have said what they are, the innermost last
_explained: set[str] = set()  # words that have been said with how long they usually take
_last_line = 0.0  # when anything was said


class Wait:
    """A context that tells of itself in lines, which read the same in terminals, notebooks and logs.

    What is over within a second says nothing. Of waits inside each other the innermost tells how far it is,
    so a line comes every eight seconds from the outermost's beginning to its end. A wait inside another of
    the same words leaves telling to that.

    Args:
        what: what is being done, such as "compiling".
        usually: how long that takes, and what needs none; said once a process.
        shown: whether to say anything.
    """

    def __init__(self, what: str, usually: str = "", shown: bool = True) -> None:
        self._what, self._usually = what, usually
        self._shown = shown
        self._over = threading.Event()
        self._teller: threading.Thread | None = None
        self._done, self._total = 0, 0

    def __enter__(self) -> Self:
        if self._shown and not any(other._what == self._what for other in _waiting):
            _waiting.append(self)
            self._teller = threading.Thread(target=self._tell, name="qfpass-wait", daemon=True)
            self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._teller is not None:
            self._teller.join()
            _waiting.remove(self)

    def count(self, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """The items one by one; lines tell how many of them are done."""
        self._total = total if total is not None else len(items) if isinstance(items, Sized) else 0
        for item in items:
            yield item
            self.advance()

    def expect(self, total: int) -> Self:
        """Say how many steps there will be; `advance` counts them."""
        self._total = total
        return self

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._done += steps

    def _tell(self) -> None:
        start = time.monotonic()
        if self._over.wait(FIRST):
            return
        _telling.append(self)
        is_new = self._what not in _explained
        _explained.add(self._what)
        self._say(f" ({self._usually})" if self._usually and is_new else "")
        while not self._over.wait(max(SOON, _last_line + EVERY - time.monotonic())):
            if _telling[-1] is self and time.monotonic() >= _last_line + EVERY:
                done = f"{self._done:,} of {self._total:,}, " if self._total else ""
                self._say(f": {done}{time.monotonic() - start:.0f} s so far")
        _telling.remove(self)

    def _say(self, rest: str) -> None:
        say(f"{self._what}{rest}")


def say(what: str) -> None:
    """One line on standard error, of the first of several processes, unless quiet is asked for."""
    global _last_line
    _last_line = time.monotonic()
    if not os.environ.get(QUIET) and os.environ.get("RANK", "0") == "0":
        print(f"qfpass: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with Wait(sys.argv[1]):
        status = subprocess.run(sys.argv[2:], check=False).returncode
    sys.exit(status)
