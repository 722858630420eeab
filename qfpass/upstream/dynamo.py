"""Dynamo, the tracer of torch.compile: sizes that may change, guards that it asks, how often it compiles."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import torch

from .entry import Needed, only_fast

GuardFilter = Callable[[Sequence[Any]], Sequence[bool]]
"""What torch.compile's option guard_filter_fn is given and gives: of each guard whether it is kept."""


@Needed
def mark_dynamic(tensor: torch.Tensor, dim: int, least: int | None = None, most: int | None = None) -> None:
    """Say that a dimension has any size of 2 and more, or of these bounds, so that one graph serves all.

    Without it: there would be a graph for each length, until Dynamo refuses to make more.
    """
    import torch._dynamo

    torch._dynamo.mark_dynamic(tensor, dim, min=least, max=most)


@Needed
def maybe_mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Say that a dimension had better have any size, if the graph can do with that.

    Without it: there would be a graph for each number of rows.
    """
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


@Needed
def mark_unbacked(tensor: torch.Tensor, dim: int) -> None:
    """Say that a dimension has any size, 0 and 1 among them, and that no graph may ask which.

    Without it: there would be graphs for stores that hold no key, one, and more.
    """
    from torch._dynamo.decorators import mark_unbacked

    mark_unbacked(tensor, dim)


@Needed
def graphs_of(code: CodeType) -> int:
    """How many graphs Dynamo has compiled of a function's code and still keeps.

    Without it: `qfpass.report` can't count them.
    """
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    return len(_debug_get_cache_entry_list(code))


@Needed
def sizes_are_fixed() -> AbstractContextManager[Any]:
    """Inside, what is compiled has the sizes that it is called with, but for those that are marked.

    Without it: what torch.compile(dynamic=True) calls would be compiled with every size dynamic.
    """
    return _patched(assume_static_by_default=True)


@Needed
def recompiling_at_most(graphs: int) -> AbstractContextManager[Any]:
    """Inside, Dynamo makes so many graphs of a function, and fails rather than run it uncompiled then.

    Without it: a benchmark that compiles for many sizes would measure what isn't compiled.
    """
    return _patched(
        recompile_limit=graphs, accumulated_recompile_limit=graphs, fail_on_recompile_limit_hit=True
    )


def _patched(**settings: Any) -> AbstractContextManager[Any]:
    from torch._dynamo import config

    for name in settings:
        getattr(config, name)  # raises here where there is none, rather than on entering
    return config.patch(**settings)


def _no_filter(of_weights: bool) -> GuardFilter | None:
    return None


@only_fast("guard_filter", plain=_no_filter)
def guard_filter(of_weights: bool) -> GuardFilter | None:
    """A filter that keeps guards of arguments and of global state such as autocast, and of weights if asked.

    The others, some 1,200 for 30 layers, walk attributes of modules and code that nobody changes: global
    hooks on modules, say, registered after the first call aren't seen.

    Without it: Dynamo asks all guards in every call.
    """

    def kept(guards: Sequence[Any]) -> list[bool]:
        try:
            return [_is_kept(guard.name, guard.guard_type, of_weights) for guard in guards]
        except Exception as error:  # guards that have no such names any more
            guard_filter.give_up(error)
            return [True] * len(guards)

    return kept


def _is_kept(name: str, kind: str, of_weights: bool) -> bool:
    return not name.startswith(("self.", "G[")) or (of_weights and kind == "TENSOR_MATCH")
