"""Graphs that Dynamo traced: which module's forward they are, and where their inputs come from."""

import re
from typing import Any

from torch import fx, nn

from .entry import Needed

_STEP = re.compile(r"\['?([^'\]]+)'?\]|\.(\w+)")
_HOLDERS = {"_modules", "_parameters", "_buffers"}  # a module's own dictionaries, left out of names
_MODEL = "L['self']"


@Needed
def module_being_traced() -> nn.Module | None:
    """The module whose forward Dynamo is compiling; None if it compiles another function.

    Without it: torch.compile(backend="qfpass") can't know of which model the graph is.
    """
    return _module_and_source()[0]


@Needed
def source_of(placeholder: fx.Node) -> str:
    """The source of a graph's input, such as L['ids'] or L['self']._modules['head']._parameters['weight'].

    Call it while the graph is being compiled: afterwards Dynamo has forgotten the source.

    Without it: torch.compile(backend="qfpass") can't tell ids, positions and weights apart.
    """
    name: str = _kept(placeholder, "grapharg").source.name
    model = _module_and_source()[1]
    return _MODEL + name.removeprefix(model) if name.startswith(model) else name


def _module_and_source() -> tuple[nn.Module | None, str]:
    """The call's first argument, under any name or in `args`, and its source; None if it is no module."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output = InstructionTranslator.current_tx().output
    assert output.root_tx is not None
    name = next(iter(output.root_tx.f_code.co_varnames), "")
    given: Any = output.local_scope.get("args")
    first = given[0] if isinstance(given, tuple) and given else None
    for value, source in ((output.local_scope.get(name), f"L['{name}']"), (first, "L['args'][0]")):
        if isinstance(value, nn.Module):
            return value, source
    return None, _MODEL


@Needed
def example_of(node: fx.Node) -> Any:
    """The value that Dynamo traced a node with: a fake tensor, a symbolic size or a number.

    Without it: torch.compile(backend="qfpass") can't tell ids, sizes and numbers apart.
    """
    return _kept(node, "example_value")


@Needed
def is_argument(source: str) -> bool:
    """Whether a source is an argument of the call: not part of the model, not a global such as math.pi.

    Without it: see `source_of`.
    """
    return source.startswith("L[") and not source.startswith(_MODEL)


@Needed
def last_step(source: str) -> str:
    """The last key of a source: position_ids for L['kwargs']['position_ids'], 1 for L['args'][1].

    Without it: see `source_of`.
    """
    return _steps(source)[-1]


@Needed
def name_in_model(source: str) -> str:
    """A part's name in the model: head.weight for L['self']._modules['head']._parameters['weight'].

    Without it: see `source_of`.
    """
    return ".".join(step for step in _steps(source)[1:] if step not in _HOLDERS)


def _kept(node: fx.Node, name: str) -> Any:
    if name not in node.meta:
        raise AttributeError(f"no {name} at {node}")
    return node.meta[name]


def _steps(source: str) -> tuple[str, ...]:
    return tuple(a or b for a, b in _STEP.findall(source))
