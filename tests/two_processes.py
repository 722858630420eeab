"""Functions run in two processes that form a group, as torchrun starts them."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

RANKS = 2
Scenario = Callable[[int, Path], None]  # of the process's number and a folder of both

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def in_two_processes(
    scenarios: Sequence[Scenario], folder: Path, ranks: int = RANKS, seconds: int = 60
) -> None:
    """Run each scenario in both, one after the other; raises what a process raises.

    Args:
        ranks: more processes than two.
        seconds: that one waits for another.
    """
    torch.multiprocessing.spawn(_run, (list(scenarios), str(folder), ranks, seconds), nprocs=ranks)


def _run(rank: int, scenarios: Sequence[Scenario], folder: str, ranks: int, seconds: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ["QFPASS_CACHE"] = f"{folder}/cache_{rank}"
    store: Any = f"file://{folder}/store"
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timeout)
    for scenario in scenarios:
        scenario(rank, Path(folder))
