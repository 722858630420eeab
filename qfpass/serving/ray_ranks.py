"""A replica of several processes: Ray Serve's own, which has the server, and an actor for each other rank.

All are in the replica's placement group, one in each bundle. If one of them ends, so does the replica, and
Ray starts another.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .follow import Leader, follow

_log = logging.getLogger(__name__)
STARTING = timedelta(minutes=5)  # that processes wait for each other, also in a model's collectives
PAUSE = timedelta(days=365)  # between two requests
GRACE = 2.0  # seconds in which answers that fail are sent before the process ends


def run_by_ranks(load: Callable[[], tuple[Any, ...]], ranks: int, options: dict[str, Any]) -> tuple[Any, ...]:
    """What `load` gives here, the first rank, with a model whose methods all ranks call.

    Args:
        load: is called in each of the `ranks` processes, which form torch's process group.
        options: of each actor, such as `num_gpus`.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with socket.create_server(("", 0)) as free:
        address = f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    bundles = ray.util.get_current_placement_group()
    running = {}
    for rank in range(1, ranks):
        place = PlacementGroupSchedulingStrategy(bundles, placement_group_bundle_index=rank)
        actor = ray.remote(_Rank).options(scheduling_strategy=place, **options).remote()
        running[actor.run.remote(load, rank, ranks, address)] = rank
    threading.Thread(target=_watch, args=(running,), name="qfpass ranks", daemon=True).start()
    group = _joined(0, ranks, address)
    model, *others = load()
    return Leader(model, group, _end).model, *others


class _Rank:
    """An actor that is another rank than the first."""

    def run(self, load: Callable[[], tuple[Any, ...]], rank: int, ranks: int, address: str) -> None:
        """Load the model and follow the first rank; the process ends with it."""
        group = _joined(rank, ranks, address)
        follow(load()[0], group)


def _joined(rank: int, ranks: int, address: str) -> Any:
    """Join torch's process group of the replica; another group of the same processes, which may wait long.

    Ray shows a process its own GPU alone, which therefore is number 0.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=ranks, timeout=STARTING)
    return dist.new_group(backend="gloo", timeout=PAUSE)


def _watch(running: dict[Any, int]) -> None:
    """End this process when one of the other ranks ends."""
    import ray

    ended, _ = ray.wait(list(running), num_returns=1)
    try:
        ray.get(ended)
        reason = "it returned"
    except Exception as error:  # whatever the actor raised, or that it died
        reason = str(error).strip().splitlines()[-1]
    _end(RuntimeError(f"rank {running[ended[0]]} has ended: {reason}"))


def _end(error: BaseException) -> None:
    """End this process soon, so that Ray starts another replica."""

    def exit_late() -> None:
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)  # threads that wait for the others would keep it from exiting

    _log.critical("this replica ends, since its ranks can't go on together: %s", error)
    threading.Thread(target=exit_late, daemon=True).start()
