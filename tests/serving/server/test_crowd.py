"""A crowd of good and bad requests: never a 500, and each accepted answer is that of the request alone.

More is kept than memory holds, and then more than the disk. A few hundred visits; `make fuzz-server`: 10,000.
"""

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from crowd import SECRETS, Visitors, ids_of, second_answer
from served_chat import Server, chat_model, serving

from qfpass.serving.session_files import SessionFiles

ROWS, IN_MEMORY, ON_DISK = 3, 6, 20
REQUESTS = int(os.environ.get("QFPASS_REQUESTS", "200"))


def resident_bytes() -> int:
    """Memory of this process, the server's and the visitors'."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def visit(server: Server, crowd: Visitors, visits: int, after_each: Callable[[], None]) -> None:
    """So many visits, a dozen at a time."""

    async def run() -> None:
        gate = asyncio.Semaphore(12)
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:

            async def one() -> None:
                async with gate:
                    await crowd.visit(client)
                    after_each()

            await asyncio.gather(*(one() for _ in range(visits)))

    asyncio.run(run())
    server.wait_until_idle()


def test_a_crowd_of_good_and_bad_visitors(monkeypatch: pytest.MonkeyPatch) -> None:
    row = chat_model().pool(1).nbytes
    file = int(1.2 * row)  # a session's, with its ids and a header
    memory, disk = (ROWS + 2 + IN_MEMORY) * row, ON_DISK * file
    crowd, halves, on_disk, from_disk = Visitors(seed=0), list[int](), list[int](), 0
    read = SessionFiles.read

    def counted(*arguments: Any) -> Any:
        nonlocal from_disk
        from_disk += 1
        return read(*arguments)

    monkeypatch.setattr(SessionFiles, "read", counted)
    with serving(rows=ROWS, queue=200, memory=memory, disk=disk) as server:

        def watch() -> None:
            assert server.scheduler.nbytes <= memory - 2 * row
            on_disk.append(server.scheduler.disk_nbytes)
            assert on_disk[-1] <= disk

        for _ in range(2):
            visit(server, crowd, REQUESTS // 2, watch)
            halves.append(resident_bytes())
    print(
        f"{dict(crowd.statuses)}, {dict(crowd.kinds)}; second turns that went on: {dict(crowd.remembered)}; "
        f"{from_disk} sessions came from disk; {halves} bytes after each half"
    )
    assert {200, 400, 413} <= crowd.statuses.keys() and len(crowd.kinds) == len(crowd.visits)
    assert max(on_disk) > disk - file  # it was full, so some conversations were lost
    assert from_disk and crowd.remembered[True] and crowd.remembered[False]
    if REQUESTS >= 5000:  # fewer don't fill the caches of Python and its packages
        assert halves[1] <= 1.01 * halves[0]


def test_a_crowd_where_memory_holds_nothing_but_the_rows() -> None:
    crowd, row = Visitors(seed=1), chat_model().pool(1).nbytes
    with serving(rows=ROWS, queue=200, memory=(ROWS + 2) * row, disk=0) as server:
        visit(server, crowd, min(REQUESTS, 60), lambda: None)
        assert server.scheduler.nbytes == ROWS * row and server.scheduler.disk_nbytes == 0
    assert crowd.remembered[False] and not crowd.remembered[True]


def test_what_is_remembered_shows_in_the_answer() -> None:
    """So a spy would notice: the text isn't the same where the first turn has evicted keys already."""
    assert any(second_answer(secret, len(ids_of(secret))) != second_answer(secret, 0) for secret in SECRETS)
