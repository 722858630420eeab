"""A module as an object: what a wrapper wraps, a copy that shares its parts, one that stays where it is."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Needed


@Needed
def inside_torch_compile(module: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` wrapped, or the module itself.

    Without it: what torch.compile gives would be compiled with its wrapper, and have no `generate`.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    return module._orig_mod if isinstance(module, OptimizedModule) else module


@Needed
def twin_object(module: nn.Module) -> nn.Module:
    """Another object with the same parts, in dictionaries of its own, and without hooks.

    What `module` itself has in the place of its class's methods, as accelerate's hooks put there or
    `module.compile()`, is left out.

    Without it: what is set on a compiled model would be set on the original too.
    """
    twin = copy.copy(module)
    held = twin.__dict__
    for name, empty in vars(nn.Module()).items():
        if "hooks" in name:
            held[name] = empty
        elif name in held and isinstance(empty, (dict, set)):
            held[name] = type(held[name])(held[name])
    held["_compiled_call_impl"] = None
    for name in [name for name in held if callable(getattr(type(twin), name, None))]:
        del held[name]
    return twin


@Needed
def require_moves_in_one_place() -> None:
    """See that `.to()`, `.cuda()`, `.half()` and their like still go by `_apply`, which `Unmoved` replaces.

    Without it: moving a compiled model would move its original's parameters, unnoticed.
    """
    nn.Module._apply  # noqa: B018


class Unmoved(nn.Module, ABC):
    """A module whose parameters are another's, so that whatever would move or cast them is asked first."""

    @abstractmethod
    def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raise if `like`, which a method such as `.to()` does to each tensor, would change one."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.refuse_to_become(fn)
        return self
