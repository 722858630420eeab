"""Modules and weights: hooks, tensors made of several, and how often a tensor was changed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .entry import Needed, only_fast


@only_fast("trace_layers_once", plain=lambda module: True)
def has_hooks(module: nn.Module) -> bool:
    """Whether code of others runs before or after a module's forward.

    Without it: every module is taken for one that has hooks, and so is traced.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks)


@Needed
def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one of a class such as a quantised weight's consists of; none of a plain tensor.

    Without it: quantised weights would be taken for plain ones.
    """
    if type(tensor) in (torch.Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return []
    parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return [part for part in parts if isinstance(part, torch.Tensor)]


@Needed
def counts_of_changes(tensors: Iterable[torch.Tensor]) -> list[int]:
    """How often each was changed in place, counted from any number.

    Without it: copies of weights wouldn't follow a change, unnoticed.
    """
    return [tensor._version for tensor in tensors]


@Needed
def own_values(module: nn.Module) -> dict[str, Any]:
    """All that a module holds itself, by name, as it changes: parameters, buffers, parts and hooks among it.

    Without it: what is set on a model after compile would not be noticed.
    """
    assert {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"} <= vars(
        module
    ).keys()
    return vars(module)
