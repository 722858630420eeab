"""Tracing without what it costs and nobody reads."""

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
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


@contextmanager
def without_fake_results_kept() -> Iterator[None]:
    """What operators give for fake tensors isn't kept for calls alike.

    Where sizes are symbols, finding out whether it may be takes longer than running them: a third of the
    time in which Dynamo traces a layer.
    """
    before = torch._dynamo.config.fake_tensor_cache_enabled
    if before:
        torch._dynamo.config.fake_tensor_cache_enabled = False
    try:
        yield
    finally:
        if before:
            torch._dynamo.config.fake_tensor_cache_enabled = True


@contextmanager
def without_source_lines_kept() -> Iterator[None]:
    """If sources were read for messages and guards, lines of files are forgotten: 9 MiB, mostly PyTorch's.

    Who asks for such a line reads it again. What no file holds, such as a notebook's cells, stays.
    """
    before = len(linecache.cache)
    try:
        yield
    finally:
        if len(linecache.cache) > before:
            for name in list(linecache.cache):
                entry = linecache.cache.get(name, ())
                if len(entry) > 1 and entry[1] is not None:  # when the file was written
                    linecache.cache.pop(name, None)


def read_rather_than_run(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph's module for which Python is generated when it is first called, if it is.

    A graph module that it is put into makes it forget that again.
    """
    return _LazyGraphModule(root, graph)


def generate_python(module: fx.GraphModule) -> None:
    """Now, for a module and all in it: Dynamo reads it."""
    for part in module.modules():  # outer ones first, which let inner ones forget
        if isinstance(part, _LazyGraphModule):
            part.real_recompile()


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
