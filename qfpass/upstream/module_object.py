"""A module as an object: a copy that shares its parts, and one that stays where it is."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Needed


@Needed
def twin_object(module: nn.Module) -> nn.Module:
    """Another object with the same parts, in dictionaries of its own.

    Without it: what is set on a compiled model would be set on the original too.
    """
    twin = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin


@Needed
def require_moves_in_one_place() -> None:
    """See that `.to()`, `.cuda()`, `.half()` and their like still go by `_apply`, which `Unmoved` replaces.

    Without it: moving a compiled model would move its original's parameters, unnoticed.
    """
    nn.Module._apply  # noqa: B018


class Unmoved(nn.Module):
    """A module whose parameters are another's, so that whatever would move or cast them is asked first."""

    def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raise if `like`, which a method such as `.to()` does to each tensor, would change one."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.refuse_to_become(fn)
        return self
