"""What a model does, written down: every operator that runs."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from ..upstream.fake_tensors import Fakes
from .no_ops import is_no_op

_DEVICE = torch.ops.prim.device.default
_LARGEST_CONSTANT = 1 << 20  # numbers of a tensor that isn't the model's


def form_of(tensor: torch.Tensor, device: torch.device) -> str:
    """A tensor's type, sizes, strides, dtype and device in words."""
    return f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {device}"


class Record:
    """Writes down operators that it runs, and tensors by numbers in the order in which they are seen: %3.

    What an operator gives unchanged has the number of what it was given.

    Attributes:
        lines: one an operator, and one a tensor that is new.
        kept: every tensor that has a number of its own, so that none takes the place of another.
    """

    def __init__(self, known: Sequence[torch.Tensor], fakes: Fakes) -> None:
        self._fakes = fakes
        self.lines, self.kept = list[str](), list[torch.Tensor]()
        self._numbers, self._others = dict[int, int](), list[torch.Tensor]()
        for tensor in known:
            self.number(tensor)

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives."""
        if operator is _DEVICE and self._fakes.is_fake(args[0]):  # its form tells
            return self._fakes.device_of(args[0])
        operands = f"{self.told(args)} {self.told(kwargs)}"
        out = operator(*args, **kwargs)
        if is_no_op(operator, args, out):
            self._numbers[id(out)] = self.number(args[0])
            self._others.append(out)
        self.lines.append(f"{operator} {operands} -> {self.told(out)}")
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
            form = form_of(tensor, self._fakes.device_of(tensor))
            self.lines.append(f"{number} is {form} {self._numbers_in(tensor)}")
        return number

    def _numbers_in(self, tensor: torch.Tensor) -> str:
        """The contents of a tensor that isn't fake, such as one that a forward makes from numbers."""
        if self._fakes.is_fake(tensor):
            return ""
        if tensor.numel() > _LARGEST_CONSTANT:
            raise ValueError(f"it reads a constant of {tensor.numel()} numbers")
        return hashlib.sha256(repr(self._fakes.numbers_of(tensor)).encode()).hexdigest()
