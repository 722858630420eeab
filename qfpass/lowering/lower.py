"""Compile one graph with torch.compile."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ..config import Config
from ..upstream import dynamo, inductor
from .by_device import ByDevice, lies_on_several
from .inductor_backend import (
    OnRun,
    caches_for_bound,
    compile_wait,
    recordable_inductor,
    reporting_inductor,
)
from .replays import CUDA_GRAPHS
from .weight_guard import weights_of, with_weights_checked

Call = Callable[..., Any]
GUARD_FILTER = "guard_filter_fn"  # an option of torch.compile that Inductor doesn't know


def lower(module: fx.GraphModule, config: Config, longest: int | None = None, **options: Any) -> Call:
    """A callable that runs `module`, compiled as one graph by the config's backend.

    `options` are Inductor's. `longest` is the bound that inputs are marked with by `mark_length`, if any are.

    Raises:
        QFPassError: from the call, if a weight of an Inductor graph has changed (see `weight_guard`).
    """
    if config.backend != "inductor":
        return _compiled(module, config, longest, backend=config.backend, **config.compile_options)
    return with_weights_checked(compiled_by_inductor(module, config, longest, **options), weights_of(module))


def compiled_by_inductor(
    module: fx.GraphModule,
    config: Config,
    longest: int | None = None,
    on_run: OnRun | None = None,
    **options: Any,
) -> Call:
    """A callable that runs `module`, compiled by Inductor with `options` and those of the config.

    `on_run` is called after every run of the generated code, if this version of torch can report runs.

    Raises:
        RuntimeError: from torch.compile, if a user's option doesn't exist in Inductor.
    """
    asked = {k: v for k, v in config.compile_options.items() if k not in ("mode", "options")}
    dynamo_options = _dynamo_options(config)
    of_inductor = inductor_options(config, options)
    backend = None
    if on_run is not None:
        backend = reporting_inductor(of_inductor, on_run, longest)
    elif config.switches.replay:
        backend = recordable_inductor(of_inductor, longest)
    if backend is not None:
        return _compiled(module, config, longest, backend=backend, options=dynamo_options, **asked)
    options = {**of_inductor, **dynamo_options}
    call = _compiled(module, config, longest, backend="inductor", options=options, **asked)

    def call_with_own_caches(*inputs: Any) -> Any:
        with caches_for_bound(longest):
            return call(*inputs)

    return call_with_own_caches


def mark_length(tensor: torch.Tensor, dim: int, longest: int) -> None:
    """Mark a dimension as dynamic, 2 to `longest`, so that Dynamo doesn't compile a graph for this length."""
    dynamo.mark_dynamic(tensor, dim, 2, longest)


def _compiled(module: fx.GraphModule, config: Config, longest: int | None, **asked: Any) -> Call:
    if lies_on_several(module):
        return ByDevice(module, lambda part: _compiled(part, config, longest, **asked), longest)
    compiled = torch.compile(module.forward, fullgraph=True, **asked)
    has_run = False

    def call(*inputs: Any) -> Any:
        nonlocal has_run
        if has_run or config.backend != "inductor":
            return run(*inputs)
        with compile_wait():  # Dynamo's part as well
            outputs = run(*inputs)
        has_run = True
        return outputs

    def run(*inputs: Any) -> Any:
        try:
            return compiled(*inputs)
        except Exception as error:
            if not inductor.gave_up_loops(error):
                raise
        return compiled(*inputs)  # compiles again, now without our C++ loops

    return call


def _dynamo_options(config: Config) -> dict[str, Any]:
    """The user's options that are torch.compile's own."""
    asked = config.compile_options.get("options") or {}
    return {GUARD_FILTER: asked[GUARD_FILTER]} if GUARD_FILTER in asked else {}


def inductor_options(config: Config, own: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's options: those of the config's mode, then `own`, then the user's, which take precedence.

    CUDA graphs are always off here: `replays` captures whole steps, and a CUDA graph can't contain another.
    """
    mode = config.compile_options.get("mode")
    asked = config.compile_options.get("options") or {}
    user_options = {name: value for name, value in asked.items() if name != GUARD_FILTER}
    ours = {
        # Every region's code would compare the sizes of its inputs, which Dynamo's guards have done already.
        "size_asserts": False,
        # Fused multiply-add on CPUs: one instruction, and more exact.
        "cpp.enable_floating_point_contract_flag": "fast",
        **own,
    }
    without_graphs = inductor.known_options({CUDA_GRAPHS: False})
    if user_options:
        inductor.refuse_unknown({**user_options, **without_graphs})
    return {
        **(inductor.options_of_mode(mode) if mode not in (None, "default") else {}),
        **inductor.known_options(ours),
        **user_options,
        **without_graphs,
    }
