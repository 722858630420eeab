"""What a model's graph is made from, in one hash: modules, their settings and code, forms of weights."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

# Code that a version tells apart, or that has no say in what a model computes.
_FIXED = {"qfpass", "torch", "numpy", "builtins", *sys.stdlib_module_names}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What nn.Module keeps, of which the lines on modules and weights tell what matters; how text is generated.
_LEFT_OUT = {*vars(nn.Module()), "generation_config"}


def identity(model: nn.Module) -> str | None:
    """64 hexadecimal digits that two models share only if tracing them gives the same graph.

    They cover torch's and transformers' versions, every module's class and attributes, the names, shapes and
    dtypes of weights and which of them are one, and the code of all functions and methods that the model's
    own modules of Python can reach by name, as it stands now: a function that was replaced differs. What
    they can't see is a table in a library, such as that of attention functions. None for a model that holds
    something else: a hook, a tensor that isn't a buffer, an object that doesn't say what it is.
    """
    try:
        lines = "\n".join(_Description(model).lines())
    except (_UnknownError, RecursionError):
        return None
    return hashlib.sha256(lines.encode()).hexdigest()


class _UnknownError(Exception):
    """A model holds something that can't be told from something else."""


class _Description:
    """One model in lines of text."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._objects = dict[int, int]()  # by id, the number of each that has been told
        self._to_read = dict[str, ModuleType]()  # Python's modules whose code is to be told

    def lines(self) -> Iterator[str]:
        yield f"python {sys.version} torch {torch.__version__} default {torch.get_default_dtype()}"
        yield f"transformers {getattr(sys.modules.get('transformers'), '__version__', None)}"
        for file in sorted(Path(__file__).parent.glob("*.py")):  # what qfpass does to a graph
            yield hashlib.sha256(file.read_bytes()).hexdigest()
        for path, module in self._model.named_modules():
            yield f"{path}: {self._module(module)}"
        weights = [*self._model.named_parameters(remove_duplicate=False)]
        weights += self._model.named_buffers(remove_duplicate=False)
        numbers = dict[int, int]()
        for name, tensor in weights:
            yield f"{name}: {numbers.setdefault(id(tensor), len(numbers))} {_form(tensor)}"
        yield from self._code()

    def _module(self, module: nn.Module) -> str:
        if any(vars(module).get(hooks) for hooks in _HOOKS):
            raise _UnknownError
        own = {name: value for name, value in vars(module).items() if name not in _LEFT_OUT}
        return f"{self._class(type(module))} {self._value(own)}"

    def _value(self, value: Any) -> str:
        if isinstance(value, (*_PLAIN, *_TORCH)):
            return repr(value)
        if isinstance(value, nn.Module):
            return f"module {self._path(value)}"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self._value(k)}: {self._value(v)}' for k, v in value.items())}}}"
        if isinstance(value, Sequence):
            return f"{type(value).__name__}({', '.join(map(self._value, value))})"
        if isinstance(value, (set, frozenset)):
            return f"set({', '.join(sorted(map(self._value, value)))})"
        if isinstance(value, type):
            return f"class {self._class(value)}"
        if isinstance(value, FunctionType):
            return f"function {self._function(value)}"
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type(None))):
            return f"function {value.__module__}.{value.__qualname__}"
        if isinstance(value, MethodType):
            return f"method {self._function(value.__func__)} of {self._value(value.__self__)}"
        if isinstance(value, partial):
            return f"partial {self._value([value.func, value.args, value.keywords])}"
        return self._object(value)

    def _path(self, module: nn.Module) -> str:
        if id(module) not in self._paths:
            raise _UnknownError  # held outside of the model's tree
        return self._paths[id(module)]

    def _object(self, value: Any) -> str:
        if isinstance(value, torch.Tensor) or not hasattr(value, "__dict__"):
            raise _UnknownError
        if id(value) in self._objects:
            return f"object {self._objects[id(value)]}"
        self._objects[id(value)] = len(self._objects)
        return f"{self._class(type(value))} {self._value(vars(value))}"

    def _class(self, kind: type) -> str:
        """Its name; its bases' and its own methods the first time, for a class needn't be reached by name."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if id(kind) in self._objects or _is_fixed(kind.__module__):
            return name
        self._objects[id(kind)] = len(self._objects)
        self._read(kind.__module__)
        bases = ", ".join(map(self._class, kind.__bases__))
        methods = ", ".join(f"{of} {self._function(function)}" for of, function in _methods(kind))
        return f"{name}({bases}) {{{methods}}}"

    def _function(self, function: FunctionType) -> str:
        """Its name; the first time its code and, if made within a function, what it took from there."""
        name = f"{function.__module__}.{function.__qualname__}"
        if id(function) in self._objects or _is_fixed(function.__module__):
            return name
        self._objects[id(function)] = len(self._objects)
        self._read(function.__module__)
        taken = ""
        if "<locals>" in function.__qualname__:
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            contents = {variable: cell.cell_contents for variable, cell in cells if variable != "__class__"}
            taken = self._value([contents, function.__defaults__, function.__kwdefaults__])
        return f"{name} {code_digest(function.__code__)} {taken}"

    def _read(self, name: str) -> None:
        if name in sys.modules and not _is_fixed(name):
            self._to_read.setdefault(name, sys.modules[name])

    def _code(self) -> Iterator[str]:
        """The functions of all Python modules that are to be read, and of those that they name in turn."""
        told = set[str]()
        while waiting := sorted(set(self._to_read) - told):
            for name in waiting:
                told.add(name)
                for of, value in sorted(vars(self._to_read[name]).items()):
                    functions = _methods(value) if isinstance(value, type) else _plain_functions(of, value)
                    for method, function in functions:
                        self._read(function.__module__)
                        yield f"{name} {of} {method} {code_digest(function.__code__)}"


def _is_fixed(module: str) -> bool:
    """Whether a Python module's code is known by a version, or has no say in what a model computes."""
    return module.partition(".")[0] in _FIXED


def _methods(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """A class's own functions."""
    for name, member in vars(kind).items():
        yield from _plain_functions(name, getattr(member, "__func__", getattr(member, "fget", member)))


def _plain_functions(name: str, value: Any) -> Iterator[tuple[str, FunctionType]]:
    """A function and those that decorators hide in it; nothing if it is something else."""
    while isinstance(value, FunctionType):
        yield name, value
        value = getattr(value, "__wrapped__", None)


def code_digest(code: CodeType) -> str:
    """What a function does, without where it stands; constants are part of it."""
    digest = hashlib.sha256(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            digest.update(code_digest(constant).encode())
        else:  # a frozenset has no order
            plain = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            digest.update(repr(plain).encode())
    return digest.hexdigest()


def _form(tensor: torch.Tensor) -> str:
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        raise _UnknownError  # such as a quantised one, which is made of others
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"
