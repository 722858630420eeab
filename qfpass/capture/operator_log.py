"""A log of every operator that a model runs."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from ..graph.no_ops import is_no_op
from ..upstream.fake_tensors import Fakes

_DEVICE = torch.ops.prim.device.default
_LARGEST_CONSTANT = 1 << 20  # elements of a tensor that isn't the model's


def form_of(tensor: torch.Tensor, device: torch.device) -> str:
    """A tensor's type, sizes, strides, dtype and device in words."""
    return f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {device}"


class OperatorLog:
    """Runs operators and logs them. Tensors are logged by number, in the order in which they appear: %3.

    The output of a no-op has the number of its input. Tensors in `known` come first.

    Attributes:
        lines: one for each operator that ran, and one for each tensor that was new.
        kept: every tensor with a number of its own, kept alive so that no other tensor gets its id.
    """

    def __init__(self, known: Sequence[torch.Tensor], fakes: Fakes) -> None:
        self._fakes = fakes
        self.lines, self.kept = list[str](), list[torch.Tensor]()
        self._numbers, self._others = dict[int, int](), list[torch.Tensor]()
        for tensor in known:
            self.number(tensor)

    def run(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, log it, and return its result."""
        if operator is _DEVICE and self._fakes.is_fake(args[0]):  # the tensor's own line has its device
            return self._fakes.device_of(args[0])
        operands = f"{self.told(args)} {self.told(kwargs)}"
        out = operator(*args, **kwargs)
        if is_no_op(operator, args, out):
            self._numbers[id(out)] = self.number(args[0])
            self._others.append(out)
        self.lines.append(f"{operator} {operands} -> {self.told(out)}")
        return out

    def told(self, value: Any) -> str:
        """Operands or outputs as text, tensors by number."""
        if isinstance(value, torch.Tensor):
            return f"%{self.number(value)}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(map(self.told, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self.told(each)}' for key, each in value.items())}}}"
        return repr(value)

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor; a new tensor gets the next one and a line."""
        number = self._numbers.setdefault(id(tensor), len(self.kept))
        if number == len(self.kept):
            self.kept.append(tensor)
            form = form_of(tensor, self._fakes.device_of(tensor))
            self.lines.append(f"{number} is {form} {self._numbers_in(tensor)}")
        return number

    def _numbers_in(self, tensor: torch.Tensor) -> str:
        """A hash of the elements of a tensor that isn't fake, such as a forward's constant; "" of a fake one.

        Raises:
            ValueError: the tensor is too large.
        """
        if self._fakes.is_fake(tensor):
            return ""
        if tensor.numel() > _LARGEST_CONSTANT:
            raise ValueError(f"it reads a constant of {tensor.numel()} numbers")
        return hashlib.sha256(repr(self._fakes.numbers_of(tensor)).encode()).hexdigest()
