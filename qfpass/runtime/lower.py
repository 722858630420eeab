"""Lower a decoder's graphs with torch.compile, whose guards ask only what a call can change."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ..config import Config
from ..graph.tracing import (
    generate_python,
    without_fake_results_kept,
    without_source_lines_kept,
    without_stack_traces,
)
from ..upstream import dynamo, inductor
from .inductor import Tell, caches_of, recorded_inductor, telling_inductor
from .replays import CUDA_GRAPHS
from .weights import are_plain, weights_of, with_weights_checked

Call = Callable[..., Any]


def lower(module: fx.GraphModule, config: Config, longest: int | None = None, **options: Any) -> Call:
    """`module` compiled whole by the config's backend; `options` are Inductor's.

    `longest` is the bound of lengths that `mark_length` marks, if it marks any.

    Raises:
        QFPassError: from the call, if the weights of an Inductor graph have changed their form.
    """
    if config.backend != "inductor":
        return _compiled(module, config, backend=config.backend, **config.compile_options)
    return with_weights_checked(compiled_by_inductor(module, config, longest, **options), weights_of(module))


def compiled_by_inductor(
    module: fx.GraphModule,
    config: Config,
    longest: int | None = None,
    tell: Tell | None = None,
    **options: Any,
) -> Call:
    """`module` compiled with Inductor's `options` and the config's.

    `tell` is given every run of its code, where this version of torch can tell of any.

    Raises:
        RuntimeError: torch.compile's, of an option that Inductor doesn't have.
    """
    asked = dict(config.compile_options)
    users = {**(asked.pop("options", None) or {})}
    of_dynamo = _options_of_dynamo(module, config, users)
    chosen = _options_of_inductor(asked.pop("mode", None), options, users)
    backend = None
    if tell is not None:
        backend = telling_inductor(chosen, tell, longest)
    elif config.switches.replay:
        backend = recorded_inductor(chosen, longest)
    if backend is not None:
        return _compiled(module, config, backend=backend, options=of_dynamo, **asked)
    call = _compiled(module, config, backend="inductor", options={**chosen, **of_dynamo}, **asked)

    def call_with_own_caches(*inputs: Any) -> Any:
        with caches_of(longest):
            return call(*inputs)

    return call_with_own_caches


def mark_length(tensor: torch.Tensor, dim: int, longest: int) -> None:
    """Say that a dimension has any length from 2 to `longest`, for Dynamo to make no graph of this one."""
    dynamo.mark_dynamic(tensor, dim, 2, longest)


def _compiled(module: fx.GraphModule, config: Config, **asked: Any) -> Call:
    is_lean = config.switches.lean_tracing
    if is_lean:
        generate_python(module)
    compiled = torch.compile(module.forward, fullgraph=True, **asked)

    def call(*inputs: Any) -> Any:
        try:
            return compiled(*inputs)
        except Exception as error:
            if not inductor.gave_up_loops(error):
                raise
        return compiled(*inputs)

    def call_lean(*inputs: Any) -> Any:
        # any call may be one that compiles
        with without_stack_traces(), without_fake_results_kept(), without_source_lines_kept():
            return call(*inputs)

    return call_lean if is_lean else call


def _options_of_dynamo(module: fx.GraphModule, config: Config, users: dict[str, Any]) -> dict[str, Any]:
    """Those that torch.compile takes for itself; the user's are taken out of `users`."""
    keep = None
    if config.switches.guard_filter:
        keep = dynamo.guard_filter(of_weights=not are_plain(weights_of(module)))
    keep = users.pop("guard_filter_fn", keep)
    return {} if keep is None else {"guard_filter_fn": keep}


def _options_of_inductor(
    mode: str | None, own: Mapping[str, Any], users: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of Inductor, a mode spelled out; the user's come last, but for CUDA graphs.

    `replays` makes those, of whole steps, and one can't hold others.
    """
    ours = {
        # Every region would ask for the sizes of all its inputs, which the guards have compared already.
        "size_asserts": False,
        # Products and sums of processors' loops are one instruction, which is also the more exact.
        "cpp.enable_floating_point_contract_flag": "fast",
        **own,
    }
    without_graphs = inductor.known({CUDA_GRAPHS: False})
    if users:
        inductor.refuse_unknown({**users, **without_graphs})
    return {
        **(inductor.options_of_mode(mode) if mode not in (None, "default") else {}),
        **inductor.known(ours),
        **users,
        **without_graphs,
    }
