"""Kernels that generated code calls, recorded so that they can be called again on the same memory.

What Inductor generates for a processor is Python: it allocates, makes views and calls kernels. Of a small
model's step that takes a fifth of the time, and where every step is the same on the same memory, only the
kernels change anything. This is what a CUDA graph is on a GPU.
"""

import threading
from collections.abc import Callable, Sequence
from dis import get_instructions, hasname
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch

Generated = Callable[[list[Any]], Sequence[Any]]
"""What Inductor generates for a graph: it takes its inputs as a list, which it empties."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # of Inductor's extern_kernels, into a tensor given as `out`
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# What generated code may use beside kernels: it makes tensors and counts.
_NAMES = {
    "empty_strided_cpu", "reinterpret_tensor", "extern_kernels", "torch", "min", "max", "RuntimeError",
}  # fmt: skip
_ATTRIBUTES = {*_PRODUCTS, *_DTYPES, "clear"}

_of_thread = threading.local()


def run(generated: Generated, inputs: list[Any]) -> Sequence[Any]:
    """generated(inputs), recorded if this thread is recording."""
    recorded: Recorded | None = getattr(_of_thread, "recorded", None)
    return generated(inputs) if recorded is None else recorded.run(generated, inputs)


class Recorded:
    """A call whose kernels were recorded. It holds the memory that they work on.

    Attributes:
        is_whole: whether all that ran was recorded.
    """

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self.is_whole = True
        self._kernels: list[Callable[[], object]] = []
        self._inputs = [tensor.clone() for tensor in inputs]
        _of_thread.recorded = self
        try:
            self._outputs = call(*self._inputs)
        finally:
            _of_thread.recorded = None
        self.is_whole = self.is_whole and bool(self._kernels)
        if not self.is_whole:
            self._kernels.clear()

    def run(self, generated: Generated, inputs: list[Any]) -> Sequence[Any]:
        """generated(inputs), its kernels recorded if it does nothing else."""
        kernels = _kernels(generated)
        if kernels is None:
            self.is_whole = False
            return generated(inputs)
        assert isinstance(generated, MethodType)
        function = generated.__func__
        names = {**function.__globals__, **{name: self._noting(kernel) for name, kernel in kernels.items()}}
        products = names.get("extern_kernels")
        names["extern_kernels"] = SimpleNamespace(
            **{name: self._noting(getattr(products, name, None), into="out") for name in _PRODUCTS}
        )
        return FunctionType(function.__code__, names)(generated.__self__, inputs)

    def _noting(self, kernel: Any, into: str | None = None) -> Callable[..., None]:
        def note(*arguments: Any, **named: Any) -> None:
            if into is not None and into not in named:
                raise RuntimeError(f"a product of Inductor's code names no `{into}`: it can't be recorded.")
            self._kernels.append(partial(kernel, *arguments, **named))
            kernel(*arguments, **named)

        return note

    def first(self) -> Any:
        """What the call gave when it was recorded."""
        return self._outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The kernels again, on these inputs."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        for kernel in self._kernels:
            kernel()
        return self._outputs


def _kernels(generated: Generated) -> dict[str, Any] | None:
    """The kernels that a generated function calls, by name; None if it may do anything beside.

    All that code can do but arithmetic it does by a name.
    """
    if not isinstance(generated, MethodType) or not isinstance(generated.__func__, FunctionType):
        return None
    code, names = generated.__func__.__code__, generated.__func__.__globals__
    if code.co_freevars or any(isinstance(constant, CodeType) for constant in code.co_consts):
        return None
    named = [instruction for instruction in get_instructions(code) if instruction.opcode in hasname]
    used = {instruction.argval for instruction in named if instruction.opname == "LOAD_GLOBAL"}
    attributes = {instruction.argval for instruction in named if instruction.opname != "LOAD_GLOBAL"}
    kernels = {name: names.get(name) for name in used - _NAMES}
    return kernels if attributes <= _ATTRIBUTES and all(map(_is_kernel, kernels.values())) else None


def _is_kernel(value: Any) -> bool:
    """Whether it is a function of Inductor's C++, which works on pointers and numbers alone."""
    return isinstance(value, BuiltinFunctionType) and value.__name__ == "kernel"
