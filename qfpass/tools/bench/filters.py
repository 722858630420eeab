"""Makes filters before a process is measured, since that takes time and leaves memory allocated.

`python -m qfpass.tools.bench.filters` makes them in a process of its own.
"""

from dataclasses import asdict, replace
from typing import Any

from .fresh import answer, arguments, in_fresh_process
from .setup import Setup


def ensure_filters(setup: Setup, **sizes: Any) -> None:
    """Find or make, and cache, the Q-Filters that a compile with these sizes would use, if it uses any."""
    if setup.filters is None and setup.score == "published":
        by_eager = replace(setup, backend="eager", mode=None)
        in_fresh_process("filters", {"setup": asdict(by_eager), "sizes": sizes})


if __name__ == "__main__":
    asked = arguments()
    setup = Setup(**asked["setup"])
    setup.compile(setup.load(), **asked["sizes"])
    answer({})
