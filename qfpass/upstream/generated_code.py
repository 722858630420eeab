"""The Python that Inductor generates for a CPU, which allocates tensors, makes views and calls kernels.

Code that does nothing else can be recorded: to repeat a run, it is enough to call its kernels again.
"""

from collections.abc import Callable, Mapping
from dis import get_instructions, hasname
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from .entry import only_fast
from .inductor import Generated

WrapKernel = Callable[[Callable[..., Any], bool], Callable[..., Any]]
"""note(function, gives_out) -> the function to call instead; `gives_out` if it must write to `out=`."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # of Inductor's extern_kernels, which take `out`
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# What generated code may use beside kernels: functions that make tensors and count.
_NAMES = {
    "empty_strided_cpu", "reinterpret_tensor", "extern_kernels", "torch", "min", "max", "RuntimeError",
}  # fmt: skip
_ATTRIBUTES = {*_PRODUCTS, *_DTYPES, "clear"}


class KernelCode(NamedTuple):
    """Generated code that does nothing but call kernels.

    Attributes:
        function: the Python function.
        holder: its first argument.
        kernels: the kernels that it calls, by name.
    """

    function: Any
    holder: Any
    kernels: Mapping[str, Any]

    def with_calls(self, note: WrapKernel) -> Generated:
        """The same code, but calling what `note` returns for each kernel and each library matrix product."""
        names: dict[str, Any] = {**self.function.__globals__}
        names |= {name: note(kernel, False) for name, kernel in self.kernels.items()}
        products = names.get("extern_kernels")
        names["extern_kernels"] = SimpleNamespace(
            **{name: note(getattr(products, name), True) for name in _PRODUCTS if hasattr(products, name)}
        )
        return MethodType(FunctionType(self.function.__code__, names), self.holder)


def _unread(generated: Generated) -> KernelCode | str:
    return "generated code can't be read"


@only_fast("replay", plain=_unread)
def code_of(generated: Generated) -> KernelCode | str:
    """The code, if it does nothing but call kernels; else the reason why it can't be recorded.

    The check compares the names in its bytecode with a list: Python code does all but arithmetic by name.

    Without it: nothing is recorded.
    """
    if not isinstance(generated, MethodType) or not isinstance(generated.__func__, FunctionType):
        return "generated code is no Python function"
    function = generated.__func__
    code, names = function.__code__, function.__globals__
    if code.co_freevars or any(isinstance(constant, CodeType) for constant in code.co_consts):
        return "generated code holds functions"
    named = [instruction for instruction in get_instructions(code) if instruction.opcode in hasname]
    used = {instruction.argval for instruction in named if instruction.opname == "LOAD_GLOBAL"}
    attributes = {instruction.argval for instruction in named if instruction.opname != "LOAD_GLOBAL"}
    kernels = {name: names.get(name) for name in used - _NAMES}
    others = {name for name, value in kernels.items() if not _is_kernel(value)} | (attributes - _ATTRIBUTES)
    if others:
        return f"generated code uses {', '.join(sorted(others))}"
    return KernelCode(function, generated.__self__, kernels)


def _is_kernel(value: Any) -> bool:
    """Whether `value` is one of Inductor's C++ functions, which take only pointers and numbers."""
    return isinstance(value, BuiltinFunctionType) and value.__name__ == "kernel"
