"""A progress bar on standard error, or none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID


@contextmanager
def bar(name: str, total: int, shown: bool) -> Iterator[tuple[Progress, TaskID]]:
    """A bar of `total` steps, moved by `progress.advance(task)`; shows nothing unless `shown`."""
    with Progress(console=Console(file=sys.stderr), disable=not shown, transient=True) as progress:
        yield progress, progress.add_task(name, total=total)
