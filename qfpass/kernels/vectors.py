"""Whether Inductor knows vector instructions of this processor.

To find out it compiles and runs a trial for each kind, in processes of their own: seconds in which this one
can do something else.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache

# A trial imports these: two threads that import at a time may see half a module.
import torch._inductor.codecache
import torch.utils.cpp_extension  # noqa: F401
from torch._inductor.cpu_vec_isa import pick_vec_isa


@cache
def start_trials() -> Future[object]:
    """Let Inductor try them, under the settings that hold here. It remembers what it finds."""
    executor = ThreadPoolExecutor(1, "qfpass-trials")
    trials: Future[object] = executor.submit(copy_context().run, pick_vec_isa)
    executor.shutdown(wait=False)
    return trials


def has_vectors() -> bool:
    """Whether Inductor knows vector instructions of this processor."""
    start_trials().exception()  # when they are over
    return bool(pick_vec_isa())
