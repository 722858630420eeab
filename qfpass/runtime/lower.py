"""Lower a decoder's graphs with torch.compile, whose guards ask only what a call can change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.types import GuardFilterEntry

from ..config import Config


def lower(module: fx.GraphModule, config: Config) -> Callable[..., Any]:
    """`module` compiled whole by the config's backend."""
    asked = config.compile_options
    if config.backend == "inductor":
        asked = _for_inductor(asked)
    return torch.compile(module.forward, fullgraph=True, backend=config.backend, **asked)


def _for_inductor(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of torch.compile, a mode spelled out, since it takes a mode or options."""
    options = {
        **torch._inductor.list_mode_options(asked.get("mode") or "default"),
        # Every region would ask for the sizes of all its inputs, which the guards have compared already.
        "size_asserts": False,
        "guard_filter_fn": _guards_kept,
        **(asked.get("options") or {}),
    }
    return {**asked, "mode": None, "options": options}


def _guards_kept(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """Dynamo's guards of all tensors, of whatever is an argument, and of global state such as autocast.

    The others, some 1,200 for 30 layers, walk attributes of modules and code that nobody changes: global
    hooks on modules, say, registered after the first call aren't seen.
    """
    return [
        guard.guard_type == "TENSOR_MATCH" or not guard.name.startswith(("self.", "G[")) for guard in guards
    ]
