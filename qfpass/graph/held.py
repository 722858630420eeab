"""What modules hold, by path."""

from operator import attrgetter
from typing import Any

import torch
from torch import nn


def held(root: nn.Module, path: Any) -> Any:
    """None where there is nothing."""
    try:
        return attrgetter(path)(root)
    except AttributeError:
        return None


def hold(root: nn.Module, path: str, value: Any) -> None:
    """Let `root` have something by a path, on which modules are made where there are none."""
    *folders, name = path.split(".")
    for folder in folders:
        if not hasattr(root, folder):
            root.add_module(folder, nn.Module())
        root = getattr(root, folder)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
