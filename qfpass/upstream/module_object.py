"""Modules as objects: unwrap one, copy one that shares its parts, and refuse to move or cast one."""

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

    Without it: a model from torch.compile would be compiled with its wrapper, and have no `generate`.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    return module._orig_mod if isinstance(module, OptimizedModule) else module


@Needed
def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy of the module object that shares its parts but has its own dictionaries, and no hooks.

    Attributes of `module` that hide a method of its class aren't copied: accelerate's hooks and
    `module.compile()` set such attributes.

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
    """Raise unless nn.Module has `_apply`, which `.to()` and `.half()` call and `SharedParameters` overrides.

    Without it: moving a compiled model would move its original's parameters, unnoticed.
    """
    nn.Module._apply  # noqa: B018


class SharedParameters(nn.Module, ABC):
    """A module that shares another's parameters, so that it is asked before they are moved or cast."""

    @abstractmethod
    def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raise if `like`, which a method such as `.to()` applies to each tensor, would change one."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.refuse_to_become(fn)
        return self
