"""Lower a decoder's graphs with torch.compile, whose guards ask only what a call can change."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._dynamo.types import GuardFilterEntry

from ..config import Config
from ..graph.tracing import without_bookkeeping
from .weights import are_plain, weights_of, with_weights_checked


def lower(module: fx.GraphModule, config: Config, **options: Any) -> Callable[..., Any]:
    """`module` compiled whole by the config's backend; `options` are Inductor's.

    Raises:
        QFPassError: from the call, if the weights of an Inductor graph have changed their form.
    """
    if config.backend != "inductor":
        return _compiled(module, config, **config.compile_options)
    weights = weights_of(module)
    plain = are_plain(weights)
    keep = partial(_guards_kept, of_weights=not plain)
    compiled = _compiled(module, config, **_for_inductor(config.compile_options, keep, options))
    return with_weights_checked(compiled, weights) if plain else compiled


def _compiled(module: fx.GraphModule, config: Config, **asked: Any) -> Callable[..., Any]:
    compiled = torch.compile(module.forward, fullgraph=True, backend=config.backend, **asked)

    def call(*inputs: Any) -> Any:
        with without_bookkeeping():  # any call may be one that compiles
            return compiled(*inputs)

    return call


def _for_inductor(
    asked: Mapping[str, Any], keep: Callable[..., list[bool]], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of torch.compile, a mode spelled out, since it takes a mode or options."""
    options = {
        **torch._inductor.list_mode_options(asked.get("mode") or "default"),
        # Every region would ask for the sizes of all its inputs, which the guards have compared already.
        "size_asserts": False,
        # Products and sums of processors' loops are one instruction, which is also the more exact.
        "cpp.enable_floating_point_contract_flag": "fast",
        "guard_filter_fn": keep,
        **own,
        **(asked.get("options") or {}),
    }
    return {**asked, "mode": None, "options": options}


def _guards_kept(guards: Sequence[GuardFilterEntry], of_weights: bool) -> list[bool]:
    """Dynamo's guards of arguments and of global state such as autocast, and of weights if asked.

    The others, some 1,200 for 30 layers, walk attributes of modules and code that nobody changes: global
    hooks on modules, say, registered after the first call aren't seen.
    """
    return [
        not guard.name.startswith(("self.", "G[")) or (of_weights and guard.guard_type == "TENSOR_MATCH")
        for guard in guards
    ]
