"""Lower a decoder's graphs with torch.compile, whose guards ask only what a call can change."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._dynamo.types import GuardFilterEntry

from ..config import Config
from ..graph.tracing import (
    generate_python,
    without_fake_results_kept,
    without_source_lines_kept,
    without_stack_traces,
)
from ..upstream import dynamo
from .inductor import Inductor, Run
from .replays import CUDA_GRAPHS
from .weights import are_plain, weights_of, with_weights_checked


def lower(
    module: fx.GraphModule, config: Config, longest: int | None = None, **options: Any
) -> Callable[..., Any]:
    """`module` compiled whole by the config's backend; `options` are Inductor's.

    `longest` is the bound of lengths that `mark_length` marks, if it marks any.

    Raises:
        QFPassError: from the call, if the weights of an Inductor graph have changed their form.
    """
    if config.backend != "inductor":
        return _compiled(module, backend=config.backend, **config.compile_options)
    return with_weights_checked(compiled_by_inductor(module, config, longest, **options), weights_of(module))


def compiled_by_inductor(
    module: fx.GraphModule,
    config: Config,
    longest: int | None = None,
    tell: Callable[[Run], None] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """`module` compiled with Inductor's `options` and the config's; `tell` is given every run of its code."""
    asked = dict(config.compile_options)
    all_options = {
        "guard_filter_fn": partial(_guards_kept, of_weights=not are_plain(weights_of(module))),
        **_options(asked.pop("mode", None), options, asked.pop("options", None)),
    }
    keep = {"guard_filter_fn": all_options.pop("guard_filter_fn")}
    return _compiled(module, backend=Inductor(all_options, tell, bound=longest), options=keep, **asked)


def mark_length(tensor: torch.Tensor, dim: int, longest: int) -> None:
    """Say that a dimension has any length from 2 to `longest`, for Dynamo to make no graph of this one."""
    dynamo.mark_dynamic(tensor, dim, 2, longest)


def _compiled(module: fx.GraphModule, **asked: Any) -> Callable[..., Any]:
    generate_python(module)
    compiled = torch.compile(module.forward, fullgraph=True, **asked)

    def call(*inputs: Any) -> Any:
        # any call may be one that compiles
        with without_stack_traces(), without_fake_results_kept(), without_source_lines_kept():
            return compiled(*inputs)

    return call


def _options(mode: str | None, own: Mapping[str, Any], users: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of torch.compile, a mode spelled out; the user's come last, but for CUDA graphs.

    `replays` makes those, of whole steps, and one can't hold others.
    """
    return {
        **torch._inductor.list_mode_options(mode or "default"),
        # Every region would ask for the sizes of all its inputs, which the guards have compared already.
        "size_asserts": False,
        # Products and sums of processors' loops are one instruction, which is also the more exact.
        "cpp.enable_floating_point_contract_flag": "fast",
        **own,
        **(users or {}),
        CUDA_GRAPHS: False,
    }


def _guards_kept(guards: Sequence[GuardFilterEntry], of_weights: bool) -> list[bool]:
    """Dynamo's guards of arguments and of global state such as autocast, and of weights if asked.

    The others, some 1,200 for 30 layers, walk attributes of modules and code that nobody changes: global
    hooks on modules, say, registered after the first call aren't seen.
    """
    return [
        not guard.name.startswith(("self.", "G[")) or (of_weights and guard.guard_type == "TENSOR_MATCH")
        for guard in guards
    ]
