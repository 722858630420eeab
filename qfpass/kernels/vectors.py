"""Whether Inductor knows vector instructions of this processor.

To find out it compiles and runs a trial for each kind, in processes of their own: seconds in which this one
can do something else.
"""

import os
import threading
from contextlib import suppress
from contextvars import copy_context

# A trial imports these: two threads that import at a time may see half a module.
import torch._inductor.codecache
import torch.utils.cpp_extension  # noqa: F401
from torch._inductor import cpu_vec_isa
from torch._inductor.cpu_vec_isa import VecISA, pick_vec_isa

_starting = threading.Lock()
_try_all = cpu_vec_isa.valid_vec_isa_list  # which remembers what it found


def start_trials() -> None:
    """Let a thread try all kinds, under the settings that hold here; who asks Inductor for them waits for it.

    A trial changes what Inductor knows of a kind while it runs, so no other thread may run it.
    """
    with _starting:
        if cpu_vec_isa.valid_vec_isa_list is not _try_all:
            return
        over = threading.Event()

        def try_all() -> None:
            try:
                with suppress(Exception):  # who asks meets it again
                    _try_all()
            finally:
                over.set()

        def wait() -> list[VecISA]:
            over.wait()
            return _try_all()

        cpu_vec_isa.valid_vec_isa_list = wait  # type: ignore[assignment]
        threading.Thread(target=copy_context().run, args=(try_all,), daemon=True).start()


def has_vectors() -> bool:
    """Whether Inductor knows vector instructions of this processor."""
    return bool(pick_vec_isa())


def _forget() -> None:
    """What is forked has no thread that tries."""
    global _starting
    _starting, cpu_vec_isa.valid_vec_isa_list = threading.Lock(), _try_all


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
