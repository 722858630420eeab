"""Settings under which a model is traced, and tracing without output that nobody reads.

Such output is stack traces, source lines, Python code of graph modules, and printed graphs.
"""

import io
import linecache
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr

import torch
from torch import fx, nn

from ..upstream.attention_choice import attention_choice
from ..upstream.fx import lazy_graph_module, without_stack_traces

log = logging.getLogger(__name__)
# Held while a model is traced: it holds fake tensors meanwhile, and torch's flags are set.
TRACING = threading.RLock()


@contextmanager
def trace_settings(model: nn.Module, lean: bool = True) -> Iterator[None]:
    """Inside, settings are those of a trace: no gradients, and scaled_dot_product_attention where possible.

    If `lean`, nodes get no stack traces, and source lines that were read are forgotten at the end.
    """
    with torch.no_grad(), _sdpa_attention(model), ExitStack() as stack:
        if lean:
            stack.enter_context(without_stack_traces())
            stack.enter_context(forgetting_source_lines())
        yield


@contextmanager
def without_printed_graphs() -> Iterator[None]:
    """Inside, stderr is held back: it is printed if the body succeeds, and logged for debugging if it fails.

    torch.export prints the graphs that it fails on.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except BaseException:
        log.debug("printed before the failure: %s", printed.getvalue())
        raise
    sys.stderr.write(printed.getvalue())


@contextmanager
def _sdpa_attention(model: nn.Module) -> Iterator[None]:
    """Inside, a Hugging Face model uses scaled_dot_product_attention, if it can."""
    before, choose = attention_choice(model), getattr(model, "set_attn_implementation", None)
    if before in (None, "sdpa") or choose is None:
        yield
        return
    try:
        choose("sdpa")
    except (ValueError, ImportError):  # the model has no such attention; its own may be found as well
        yield
        return
    try:
        yield
    finally:
        choose(before)


@contextmanager
def forgetting_source_lines() -> Iterator[None]:
    """On exit, empty `linecache` of lines of files if it grew inside: 9 MiB, mostly of PyTorch's sources.

    Tracing reads them for messages and guards; `linecache` reads them again on demand. Lines that are in no
    file, such as a notebook's cells, stay.
    """
    before = len(linecache.cache)
    try:
        yield
    finally:
        if len(linecache.cache) > before:
            for name in list(linecache.cache):
                entry = linecache.cache.get(name, ())
                if len(entry) > 1 and entry[1] is not None:  # the file's modification time
                    linecache.cache.pop(name, None)


def lazy_code_module(root: nn.Module, graph: fx.Graph, lean: bool = True) -> fx.GraphModule:
    """A graph module whose Python code is generated when it is first called; at once if not `lean`.

    When a graph module that contains it generates its own code, this one's code is discarded.
    """
    return lazy_graph_module(root, graph) if lean else fx.GraphModule(root, graph)


def generate_python(module: fx.GraphModule) -> None:
    """Generate the Python code of a graph module and of all graph modules in it now: Dynamo reads it."""
    for part in module.modules():  # outer ones first, since they discard the code of inner ones
        if isinstance(part, fx.GraphModule):
            part.code  # noqa: B018


def without_autocast(model: nn.Module) -> AbstractContextManager[None]:
    """Around what traces or runs `model`: as it computes by itself, whatever the caller's autocast is."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    return torch.autocast("cpu" if device == "meta" else device, enabled=False)
