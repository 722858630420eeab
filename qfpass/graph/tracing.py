"""Tracing without what it costs and nobody reads."""

import io
import linecache
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr

import torch
from torch import fx, nn

from ..upstream.attention_choice import attention_choice
from ..upstream.fake_tensors import without_fake_results_kept
from ..upstream.fx import lazy_graph_module, without_stack_traces

log = logging.getLogger(__name__)

__all__ = [
    "as_traced",
    "generate_python",
    "read_rather_than_run",
    "without_fake_results_kept",
    "without_printed_graphs",
    "without_source_lines_kept",
    "without_stack_traces",
]


@contextmanager
def as_traced(model: nn.Module, lean: bool = True) -> Iterator[None]:
    """How things stand while a model is traced; if `lean`, neither stack traces nor source lines are kept."""
    with torch.no_grad(), _sdpa_attention(model), ExitStack() as stack:
        if lean:
            stack.enter_context(without_stack_traces())
            stack.enter_context(without_source_lines_kept())
        yield


@contextmanager
def without_printed_graphs() -> Iterator[None]:
    """What is printed is held back until the body has succeeded: torch.export prints graphs that fail."""
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
    """Let a Hugging Face model use scaled_dot_product_attention while it is traced, if it can."""
    before = attention_choice(model)
    if before in (None, "sdpa") or not hasattr(model, "set_attn_implementation"):
        yield
        return
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):  # its attention is written out, and may be found all the same
        yield
        return
    try:
        yield
    finally:
        model.set_attn_implementation(before)


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


def read_rather_than_run(root: nn.Module, graph: fx.Graph, lean: bool = True) -> fx.GraphModule:
    """A graph's module for which Python is generated when it is first called, if it is and this is `lean`.

    A graph module that it is put into makes it forget that again.
    """
    return lazy_graph_module(root, graph) if lean else fx.GraphModule(root, graph)


def generate_python(module: fx.GraphModule) -> None:
    """Now, for a module and all in it: Dynamo reads it."""
    for part in module.modules():  # outer ones first, which let inner ones forget
        if isinstance(part, fx.GraphModule):
            part.code  # noqa: B018
