"""What Inductor generates for a processor: Python that allocates, makes views and calls kernels.

Code that does nothing else can be recorded: its kernels do again what they did.
"""

from collections.abc import Callable, Mapping
from dis import get_instructions, hasname
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from .entry import only_fast
from .inductor import Generated

Note = Callable[[Callable[..., Any], bool], Callable[..., Any]]
"""note(function, gives_out): what is to be called in its place; `gives_out` if it should write to `out=`."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # of Inductor's extern_kernels, into a tensor given as `out`
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# What generated code may use beside kernels: it makes tensors and counts.
_NAMES = {
    "empty_strided_cpu", "reinterpret_tensor", "extern_kernels", "torch", "min", "max", "RuntimeError",
}  # fmt: skip
_ATTRIBUTES = {*_PRODUCTS, *_DTYPES, "clear"}


class Code(NamedTuple):
    """Generated code that does nothing but call kernels.

    Attributes:
        function: a Python function, of which `holder` is the first argument.
        kernels: what it calls, by name.
    """

    function: Any
    holder: Any
    kernels: Mapping[str, Any]

    def with_calls(self, note: Note) -> Generated:
        """The same code, which calls what `note` gives for each kernel and each product of a library."""
        names: dict[str, Any] = {**self.function.__globals__}
        names |= {name: note(kernel, False) for name, kernel in self.kernels.items()}
        products = names.get("extern_kernels")
        names["extern_kernels"] = SimpleNamespace(
            **{name: note(getattr(products, name), True) for name in _PRODUCTS if hasattr(products, name)}
        )
        return MethodType(FunctionType(self.function.__code__, names), self.holder)


def _unread(generated: Generated) -> Code | str:
    return "generated code can't be read"


@only_fast("replay", plain=_unread)
def code_of(generated: Generated) -> Code | str:
    """Generated code, if all that it does is known: but arithmetic, it does everything by a name.

    Else what is in the way.

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
    return Code(function, generated.__self__, kernels)


def _is_kernel(value: Any) -> bool:
    """Whether it is a function of Inductor's C++, which works on pointers and numbers alone."""
    return isinstance(value, BuiltinFunctionType) and value.__name__ == "kernel"
