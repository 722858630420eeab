"""Models that accelerate has spread over several devices of one process, by hooks around their modules."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .entry import Needed


@Needed
def inside_hook(model: nn.Module) -> Callable[..., Any] | None:
    """The forward that accelerate's hook around a whole model surrounds; None for a model without one.

    The hook moves inputs to the device that accelerate takes for the main one, and results back. That device
    needn't be the one of the embeddings: of devices given by name it is any.

    Without it: positions that are given with the ids lie elsewhere than a spread model needs them.
    """
    own: Callable[..., Any] | None = vars(model).get("_old_forward")
    return own if hasattr(model, "_hf_hook") else None


@Needed
def waiting_elsewhere(model: nn.Module) -> str | None:
    """The path of a module whose weights wait elsewhere until it is called; None if there is none.

    Without it: such a model is taken for one whose weights were never loaded.
    """
    for path, module in model.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ()))):
            return path or type(model).__name__
    return None
