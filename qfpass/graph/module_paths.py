"""Get and set attributes of nested modules by dotted path."""

from operator import attrgetter
from typing import Any

import torch
from torch import nn


def get_by_path(root: nn.Module, path: Any) -> Any:
    """The attribute of `root` at a dotted path, or None if there is none."""
    try:
        return attrgetter(path)(root)
    except AttributeError:
        return None


def set_by_path(root: nn.Module, path: str, value: Any) -> None:
    """Set the attribute of `root` at a dotted path to `value`.

    Missing modules on the way are created. A tensor that is no parameter becomes a buffer.
    """
    *folders, name = path.split(".")
    for folder in folders:
        if not hasattr(root, folder):
            root.add_module(folder, nn.Module())
        root = getattr(root, folder)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
