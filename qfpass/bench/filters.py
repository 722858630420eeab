"""Filters made before a process is measured: making them takes time, and leaves memory behind.

`python -m qfpass.bench.filters` makes them in a process of its own.
"""

from dataclasses import asdict, replace
from typing import Any

from .fresh import answer, arguments, in_fresh_process
from .setup import Setup


def have_filters(setup: Setup, **sizes: Any) -> None:
    """If a compile with these sizes would find or make Q-Filters, they are found or made now, and kept."""
    if setup.filters is None and setup.score == "published":
        by_eager = replace(setup, backend="eager", mode=None)
        in_fresh_process("filters", {"setup": asdict(by_eager), "sizes": sizes})


if __name__ == "__main__":
    asked = arguments()
    setup = Setup(**asked["setup"])
    setup.compile(setup.load(), **asked["sizes"])
    answer({})
