"""Tracing without what it costs and nobody reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """None is kept for each node: a tenth of the time and more.

    They are of the process: if another thread has turned them off already, that is left to it.
    """
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if not before:
            fx.config.do_not_emit_stack_traces = False


class WithoutGradMode(TorchFunctionMode):
    """What a forward does under torch.no_grad() is traced, its switching of the grad mode isn't.

    torch.export makes modules of the parts between, and takes them apart again: a tenth of the time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch._C._set_grad_enabled:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # the modes below, of which one records it
            return func(*args)
