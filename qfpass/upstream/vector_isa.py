"""Finds out whether Inductor supports vector instructions of this CPU.

Inductor compiles and runs a trial program for each instruction set, in other processes. That takes seconds,
in which this process can do something else.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from .entry import only_fast

Find = Callable[[], list[Any]]
"""Inductor's function that returns the instruction sets that work here, and caches them."""

_starting = threading.Lock()
_started: Find | None = None  # Inductor's own function, while `wait` replaces it


@only_fast("own_loops", plain=lambda: False)
def has_vectors() -> bool:
    """Whether Inductor supports vector instructions of this CPU, which our loops need.

    Without it: Inductor's own kernels run.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return bool(pick_vec_isa())


def _no_trials() -> None:
    return None


@only_fast("vector_trials", plain=_no_trials)
def start_trials() -> None:
    """Start the trials of all instruction sets in a thread, with the caller's context variables.

    A running trial changes Inductor's state, so no other thread may run one: until the thread has ended,
    Inductor's function waits for it.

    Without it: Inductor runs the trials when it needs to know.
    """
    global _started
    # A trial imports these. Two threads that import at once may see a half-initialised module.
    import torch._inductor.codecache
    import torch.utils.cpp_extension  # noqa: F401
    from torch._inductor import cpu_vec_isa

    with _starting:
        if _started is not None:
            return
        find, over = cpu_vec_isa.valid_vec_isa_list, threading.Event()

        def try_all() -> None:
            try:
                with suppress(Exception):  # the next caller of `find` gets the error
                    find()
            finally:
                over.set()

        def wait() -> list[Any]:
            over.wait()
            return find()

        _started, cpu_vec_isa.valid_vec_isa_list = find, wait  # type: ignore[assignment]
        threading.Thread(target=copy_context().run, args=(try_all,), daemon=True).start()


def _forget() -> None:
    """Undo `start_trials` in a forked process, which doesn't have the thread."""
    global _starting, _started
    if _started is not None:
        from torch._inductor import cpu_vec_isa

        cpu_vec_isa.valid_vec_isa_list = _started  # type: ignore[assignment]
    _starting, _started = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
