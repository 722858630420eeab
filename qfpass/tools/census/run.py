"""Runs the census: each family has its own process, so that a crash or a hang only fails its entry."""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from .examine import Entry, examine
from .tiny import tiny_config, tiny_model

TIME_LIMIT = 300.0  # seconds a family
MEMORY_LIMIT = 12 * 2**30  # bytes a family; a configuration that stays large must not take the machine


def families() -> list[str]:
    """The names of all families that have a causal language model in transformers."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def examine_family(family: str, fixed: Mapping[str, Any]) -> Entry:
    """The entry of one family; `fixed` are the fields of its configuration that must not be guessed."""
    return examine(family, lambda: tiny_model(tiny_config(CONFIG_MAPPING[family], fixed)))


def census(
    names: Sequence[str],
    fixed: Mapping[str, Mapping[str, Any]],
    jobs: int = 1,
    time_limit: float = TIME_LIMIT,
) -> Iterator[Entry]:
    """Yield each family's entry when it is done; `jobs` families run at a time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pending, running = list(reversed(names)), dict[Connection, _Running]()
    while pending or running:
        while pending and len(running) < jobs:
            name = pending.pop()
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_work, args=(sender, name, fixed.get(name, {})), daemon=True
            )
            process.start()
            sender.close()
            running[receiver] = _Running(name, process, time.monotonic() + time_limit)
        ready = wait(list(running), timeout=1.0)
        for receiver, (name, process, deadline) in list(running.items()):
            if receiver in ready:
                yield _received(receiver, name, process)
            elif time.monotonic() > deadline:
                process.kill()
                yield Entry(name, "", "crashed", f"it took more than {time_limit:.0f} seconds")
            else:
                continue
            process.join()
            del running[receiver]


class _Running(NamedTuple):
    name: str
    process: BaseProcess
    deadline: float


def _received(receiver: Any, name: str, process: BaseProcess) -> Entry:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Entry(name, "", "crashed", f"its process ended with status {process.exitcode}")


def _work(sender: Connection, family: str, fixed: Mapping[str, Any]) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    logging.set_verbosity(50)
    sender.send(examine_family(family, fixed))
