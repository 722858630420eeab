"""How transformers spreads a model over processes: the style by which each module is split."""

import sys
from typing import Any

from torch import nn

from .entry import Needed


def is_spread(weight: object) -> bool:
    """Whether a weight is a DTensor, of which each process has a part."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")  # imported already if there are DTensors
    return tensors is not None and isinstance(weight, tensors.DTensor)


@Needed
def style_of(module: nn.Module) -> str | None:
    """The name of the parallel style by which transformers runs a module; None if it runs by itself.

    It is read off the forward that the style has put in the place of the module's, so that it is right
    whatever the plan says.

    Without it: a model loaded with `tp_plan` can't be compiled.
    """
    forward: Any = vars(module).get("forward")
    if not getattr(forward, "__module__", "").startswith("transformers.distributed"):
        return None
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    held = dict(zip(forward.__code__.co_freevars, forward.__closure__, strict=True))
    style = held["self"].cell_contents if "self" in held else None
    owner = forward.__qualname__.partition(".")[0]
    for name in ALL_PARALLEL_STYLES:
        known = ALL_PARALLEL_STYLES[name]
        if known is style or (style is None and type(known).__name__ == owner):
            return str(name)
    return type(style).__name__ if style is not None else str(owner)
