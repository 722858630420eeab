"""What a model does, written down: every operator that runs."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from .no_ops import is_no_op

_DEVICE = torch.ops.prim.device.default
_LARGEST_CONSTANT = 1 << 20  # numbers of a tensor that isn't the model's


def form_of(tensor: torch.Tensor) -> str:
    """A tensor's type, sizes, strides, dtype and device in words."""
    # Asking a fake tensor for its device runs an operator.
    device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
    return f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {device}"


class Record(TorchDispatchMode):
    """Writes down operators, and tensors by numbers in the order in which they are first seen: %3.

    What an operator gives unchanged has the number of what it was given.

    Attributes:
        lines: one an operator, and one a tensor that is new.
        kept: every tensor that has a number of its own, so that none takes the place of another.
    """

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.lines, self.kept = list[str](), list[torch.Tensor]()
        self._numbers, self._others = dict[int, int](), list[torch.Tensor]()
        for tensor in known:
            self.number(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # its form tells
            return args[0].fake_device
        operands = f"{self.told(args)} {self.told(kwargs or {})}"
        out = func(*args, **(kwargs or {}))
        if is_no_op(func, args, out):
            self._numbers[id(out)] = self.number(args[0])
            self._others.append(out)
        self.lines.append(f"{func} {operands} -> {self.told(out)}")
        return out

    def told(self, value: Any) -> str:
        """Operands or outputs in words."""
        if isinstance(value, torch.Tensor):
            return f"%{self.number(value)}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(map(self.told, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self.told(each)}' for key, each in value.items())}}}"
        return repr(value)

    def number(self, tensor: torch.Tensor) -> int:
        """A tensor's own, the next one if it is new."""
        number = self._numbers.setdefault(id(tensor), len(self.kept))
        if number == len(self.kept):
            self.kept.append(tensor)
            self.lines.append(f"{number} is {form_of(tensor)} {_numbers_of(tensor)}")
        return number


def _numbers_of(tensor: torch.Tensor) -> str:
    """The contents of a tensor that isn't fake, such as one that a forward makes from numbers."""
    if isinstance(tensor, FakeTensor):
        return ""
    if tensor.numel() > _LARGEST_CONSTANT:
        raise ValueError(f"a constant of {tensor.numel()} numbers")
    with no_dispatch():
        return hashlib.sha256(repr(tensor.tolist()).encode()).hexdigest()
