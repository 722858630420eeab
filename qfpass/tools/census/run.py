"""Runs the census: each family has its own process, so that a crash or a hang only fails its entry."""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from .entry import Entry, Verdict
from .examine import examine
from .families import family_model

TIME_LIMIT = 300.0  # seconds a family
MEMORY_LIMIT = 12 * 2**30  # bytes a family; a configuration that stays large must not take the machine


class Inquiry(NamedTuple):
    """What is to be found out about one family.

    Attributes:
        entry: what is known of it, without the answers of `columns`.
        columns: to be examined if the family works.
        whole: whether to find out first if it works.
        fixed: fields of its configuration that must not be guessed.
    """

    entry: Entry
    columns: Sequence[str]
    whole: bool
    fixed: Mapping[str, Any]


def inquiry(known: Entry, columns: Sequence[str], whole: bool, fixed: Mapping[str, Any]) -> Inquiry:
    """An inquiry that forgets what it asks for."""
    answers = {name: answer for name, answer in known.answers.items() if name not in columns}
    new = Entry(known.family, known.model, "", kind=known.kind)
    return Inquiry(new if whole else replace(known, answers=answers), columns, whole, fixed)


def answers_to(inquiry: Inquiry) -> Iterator[Entry]:
    """Yield the family's entry as it grows."""
    entry, columns, whole, fixed = inquiry
    build = partial(family_model, entry.kind, entry.family, fixed)
    return examine(entry, build, columns, whole)


def census(inquiries: Sequence[Inquiry], jobs: int = 1, time_limit: float = TIME_LIMIT) -> Iterator[Entry]:
    """Yield each family's entry when it is done; `jobs` families run at a time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *(["torchao.quantization"] if find_spec("torchao") else [])])
    pending, running = list(reversed(inquiries)), dict[Connection, _Running]()
    while pending or running:
        while pending and len(running) < jobs:
            inquiry = pending.pop()
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_work, args=(sender, inquiry), daemon=True)
            process.start()
            sender.close()
            running[receiver] = _Running(inquiry, process, time.monotonic() + time_limit)
        ready = wait(list(running), timeout=1.0)
        for receiver, each in list(running.items()):
            if receiver in ready:
                if each.receive(receiver):
                    continue
                each.process.join()
                why = f"its process ended with status {each.process.exitcode}"
            elif time.monotonic() > each.deadline:
                each.process.kill()
                why = f"it took more than {time_limit:.0f} seconds"
            else:
                continue
            del running[receiver]
            yield each.end(why)


@dataclass
class _Running:
    inquiry: Inquiry
    process: BaseProcess
    deadline: float
    found: Entry | None = None

    def receive(self, receiver: Connection) -> bool:
        """Take what the process has sent; False if it will send no more."""
        try:
            self.found = receiver.recv()
        except EOFError:
            return False
        return True

    def end(self, why: str) -> Entry:
        """The entry; what hasn't been found out crashed for this reason."""
        self.process.join()
        entry, columns, whole, _ = self.inquiry
        if self.found is None and whole:
            return replace(entry, outcome="crashed", note=why)
        found = self.found or entry
        missing = [name for name in columns if found.outcome == "works" and name not in found.answers]
        if missing:
            crashed = {missing[0]: Verdict("crashed", why)}
            crashed |= dict.fromkeys(missing[1:], Verdict("crashed", f"{missing[0]} came before: {why}"))
            found = replace(found, answers={**found.answers, **crashed})
        return found


def _work(sender: Connection, inquiry: Inquiry) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    logging.set_verbosity(50)
    for entry in answers_to(inquiry):
        sender.send(entry)
