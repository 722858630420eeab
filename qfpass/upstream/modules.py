"""Modules and tensors: hooks, the parts of tensor subclasses, version counters and attributes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .entry import Needed, only_fast

UNREAD = frozenset(
    {
        "_non_persistent_buffers_set", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
        "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
        "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    }
)  # fmt: skip
"""Names of what modules hold that a forward without gradients doesn't read, or only beside a forward hook."""


@only_fast("trace_layers_once", plain=lambda module: True)
def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks or forward pre-hooks.

    Without it: every module is taken for one that has hooks, and so is traced.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks)


@Needed
def parts_of(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The plain tensors of which a tensor subclass, such as a quantised weight, consists; {} for a plain one.

    They are named by the attributes that lead to them: "qdata", or "inner.qdata" in a nested one.

    Without it: quantised weights would be taken for plain ones.
    """
    found = dict[str, torch.Tensor]()
    if type(tensor) in (torch.Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return found
    for name in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):
            inner = parts_of(part)
            found |= {f"{name}.{rest}": each for rest, each in inner.items()} if inner else {name: part}
    return found


@Needed
def version_counters(tensors: Iterable[torch.Tensor]) -> list[int]:
    """The version counter of each tensor, which every change in place increases.

    Without it: a change of weights that have copies would not be noticed.
    """
    return [tensor._version for tensor in tensors]


@Needed
def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes by name, as a live dictionary, with parameters, buffers, parts and hooks.

    Without it: what is set on a model after compile would not be noticed.
    """
    assert {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"} <= vars(
        module
    ).keys()
    return vars(module)


@Needed
def weight_stores(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dictionaries in which a module holds its parameters and its buffers, by name.

    Without it: a model whose weights are spread over processes can't be compiled.
    """
    return module._parameters, module._buffers
