"""Two processes that serve one model: the first has the scheduler, the other makes the same calls."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_tensor_parallel import compiled, filters_by_chance, split_and_whole
from two_processes import in_two_processes, needs_gloo

import qfpass
from qfpass.errors import InputError, RanksError
from qfpass.model.pool import Pool
from qfpass.serving import Scheduler
from qfpass.serving.follow import Leader, follow

TEXT = [int(token) for token in torch.randint(1, 50, (70,), generator=torch.Generator().manual_seed(3))]
SETTINGS: dict[str, Any] = {"context_length": 256, "store_dtype": None}


def answers(model: Any, folder: Path) -> list[list[int]]:
    """Three at once past a full store, one sharing its beginning; then the next turn of one."""
    with Scheduler(model, rows=2, folder=folder) as scheduler:
        asked = [
            scheduler.submit(TEXT[:40], max_new_tokens=20, name="anna"),
            scheduler.submit(TEXT[:50], max_new_tokens=30, shared=20),
            scheduler.submit(TEXT[5:45], max_new_tokens=9, name="ben"),
        ]
        written = [list(answer) for answer in asked]
        later = scheduler.submit([*TEXT[:40], *written[0], 7], max_new_tokens=10, name="anna")
        written.append(list(later))
        assert later.cached_tokens > 0
    return written


def same_answers(rank: int, folder: Path) -> None:
    """As of one process; the next scheduler reads conversations from files; a refusal changes nothing."""
    split, whole = split_and_whole("llama", rank, folder)
    filters = filters_by_chance(whole)
    model = compiled(split, filters=filters, **SETTINGS)
    if rank:
        follow(model, dist.group.WORLD)
        return
    leader = Leader(model, dist.group.WORLD)
    expected = answers(compiled(whole, filters=filters, **SETTINGS), folder / "one")
    assert answers(leader.model, folder / "two") == expected
    with Scheduler(leader.model, rows=2, folder=folder / "two") as again:
        turn = again.submit([*TEXT[:40], *expected[0], 7], max_new_tokens=10, name="anna")
        assert list(turn) == expected[-1] and turn.cached_tokens > 40
        pool = leader.model.pool(rows=1)
        with pytest.raises(InputError, match="ids from 0 to 60"):
            pool.read(pool.join(session=leader.model.session()), [61])
        assert len(pool.read(0, [5])) == 1
    leader.close()


def a_process_that_goes(rank: int, folder: Path) -> None:
    """Answers end with an error within seconds, and so do later requests."""
    split, _ = split_and_whole("llama", rank, folder)
    model = compiled(split, score="recency", **SETTINGS)
    if rank:
        read, calls = Pool.read, itertools.count()
        Pool.read = lambda *given: read(*given) if next(calls) < 5 else 1 // 0  # type: ignore[method-assign]
        with pytest.raises(RanksError, match="read failed in this process"):
            follow(model, dist.group.WORLD)
        os._exit(0)  # as a process does that isn't asked
    failures = list[BaseException]()
    leader, started = Leader(model, dist.group.WORLD, failures.append), time.monotonic()
    scheduler = Scheduler(leader.model, rows=2, folder=folder / "gone")
    asked = [scheduler.submit(TEXT[:40], max_new_tokens=20) for _ in range(3)]
    for answer in asked:
        with pytest.raises(qfpass.QFPassError):
            list(answer)
    with pytest.raises(RanksError, match="no longer run together"):
        leader.model.pool(rows=1)
    assert len(failures) == 1 and time.monotonic() - started < 30
    os._exit(0)  # the group can't be closed


@needs_gloo
@pytest.mark.parametrize("scenario", [same_answers, a_process_that_goes], ids=lambda each: each.__name__)
def test_two_processes_serve_one_model(scenario: Any, tmp_path: Path) -> None:
    in_two_processes([scenario], tmp_path)
