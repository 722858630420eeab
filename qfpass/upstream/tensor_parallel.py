"""How transformers spreads a model over processes: the style by which each module and weight is split."""

import re
import sys
from typing import Any

from torch import nn

from .entry import Needed


def is_spread(weight: object) -> bool:
    """Whether a weight is a DTensor, of which each process has a part."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")  # imported already if there are DTensors
    return tensors is not None and isinstance(weight, tensors.DTensor)


@Needed
def parallel_plan(model: nn.Module) -> dict[str, str]:
    """The style of each module or weight that transformers splits, by path with `*` for a layer's number.

    Without it: a model loaded with `tp_plan` can't be compiled.
    """
    plan: dict[str, str] = getattr(model, "_tp_plan", None) or {}
    return plan


def style_of(path: str, plan: dict[str, str]) -> str | None:
    """The style of the module or weight at `path`; None if the plan doesn't name it."""
    return plan.get(path) or plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path))


def runs_in_parts(module: nn.Module) -> bool:
    """Whether transformers has put a forward of its own around a module's, as it does for a split one."""
    forward = vars(module).get("forward")
    return getattr(forward, "__module__", "").startswith("transformers.distributed")
