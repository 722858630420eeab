"""Dynamo, the tracer of torch.compile: dynamic sizes, and how often it compiles."""

from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import torch

from .entry import Needed


@Needed
def mark_dynamic(tensor: torch.Tensor, dim: int, least: int | None = None, most: int | None = None) -> None:
    """Mark a dimension as dynamic, from `least` (default 2) to `most`, so that one graph serves all sizes.

    Without it: there would be a graph for each length, until Dynamo refuses to make more.
    """
    import torch._dynamo

    torch._dynamo.mark_dynamic(tensor, dim, min=least, max=most)


@Needed
def maybe_mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Mark a dimension as dynamic unless the graph needs a fixed size.

    Without it: there would be a graph for each number of rows.
    """
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


@Needed
def mark_unbacked(tensor: torch.Tensor, dim: int) -> None:
    """Mark a dimension as unbacked: one graph serves all sizes, 0 and 1 included, and can't branch on it.

    Without it: there would be graphs for stores that hold no key, one, and more.
    """
    from torch._dynamo.decorators import mark_unbacked

    mark_unbacked(tensor, dim)


@Needed
def graphs_of(code: CodeType) -> int:
    """The number of graphs that Dynamo has compiled for a function's code and still keeps.

    Without it: `qfpass.report` can't count them.
    """
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    return len(_debug_get_cache_entry_list(code))


@Needed
def sizes_are_fixed() -> AbstractContextManager[Any]:
    """A context in which Dynamo compiles for the sizes of the call, except for dimensions that are marked.

    Without it: what torch.compile(dynamic=True) calls would be compiled with every size dynamic.
    """
    return _patched(assume_static_by_default=True)


@Needed
def recompiling_at_most(graphs: int) -> AbstractContextManager[Any]:
    """A context in which Dynamo makes at most `graphs` graphs of a function, and raises where it needs more.

    Without it: a benchmark that compiles for many sizes would measure uncompiled code.
    """
    return _patched(
        recompile_limit=graphs, accumulated_recompile_limit=graphs, fail_on_recompile_limit_hit=True
    )


def _patched(**settings: Any) -> AbstractContextManager[Any]:
    from torch._dynamo import config

    for name in settings:
        getattr(config, name)  # a missing setting raises here, not when the context is entered
    return config.patch(**settings)
