"""Whether Inductor knows vector instructions of this processor.

To find out it compiles and runs a trial for each kind, in processes of their own: seconds in which this one
can do something else.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from .entry import only_fast

Find = Callable[[], list[Any]]
"""Inductor's function that gives the kinds that work here, and remembers what it found."""

_starting = threading.Lock()
_started: Find | None = None  # Inductor's, while another is in its place


@only_fast("own_loops", plain=lambda: False)
def has_vectors() -> bool:
    """Whether Inductor knows vector instructions of this processor, which our loops are written with.

    Without it: Inductor's own kernels run.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return bool(pick_vec_isa())


def _no_trials() -> None:
    return None


@only_fast("vector_trials", plain=_no_trials)
def start_trials() -> None:
    """Let a thread try all kinds, under the settings that hold here; who asks Inductor for them waits for it.

    A trial changes what Inductor knows of a kind while it runs, so no other thread may run it.

    Without it: Inductor tries them when it needs to know.
    """
    global _started
    # A trial imports these: two threads that import at a time may see half a module.
    import torch._inductor.codecache
    import torch.utils.cpp_extension  # noqa: F401
    from torch._inductor import cpu_vec_isa

    with _starting:
        if _started is not None:
            return
        find, over = cpu_vec_isa.valid_vec_isa_list, threading.Event()

        def try_all() -> None:
            try:
                with suppress(Exception):  # who asks meets it again
                    find()
            finally:
                over.set()

        def wait() -> list[Any]:
            over.wait()
            return find()

        _started, cpu_vec_isa.valid_vec_isa_list = find, wait  # type: ignore[assignment]
        threading.Thread(target=copy_context().run, args=(try_all,), daemon=True).start()


def _forget() -> None:
    """What is forked has no thread that tries."""
    global _starting, _started
    if _started is not None:
        from torch._inductor import cpu_vec_isa

        cpu_vec_isa.valid_vec_isa_list = _started  # type: ignore[assignment]
    _starting, _started = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
