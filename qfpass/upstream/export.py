"""torch.export: nodes that it adds to a graph, its errors and its size conditions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from .entry import Needed
from .operators import name_of


class GradModeCall(NamedTuple):
    """A call of a subgraph in another grad mode: the node that holds the graph, and the call's operands."""

    body: fx.Node
    operands: tuple[Any, ...]


@Needed
def grad_mode_call(node: fx.Node) -> GradModeCall | None:
    """The grad mode call that a node makes, which returns a tuple; None for any other node.

    Without it: a model that switches gradients on is refused.
    """
    if node.target is not getattr(torch.ops.higher_order, "wrap_with_set_grad_enabled", None):
        return None
    _, body, *operands = node.args
    assert isinstance(body, fx.Node)
    return GradModeCall(body, tuple(operands))


@Needed
def depends_on_values(error: Exception) -> bool:
    """Whether torch.export refused a model because a branch or a size depends on values in tensors.

    Without it: the refusal shows torch's own message.
    """
    return "GuardOnDataDependentSymNode" in (kind.__name__ for kind in type(error).__mro__)


@Needed
def is_check(node: fx.Node) -> bool:
    """Whether a node only checks an assumption of the trace.

    Without it: a graph would refuse sizes and rewritten values that it works with.
    """
    if node.op == "call_module":
        return str(node.target) == "_guards_fn"
    return name_of(node.target) == "aten::_assert_tensor_metadata"


@Needed
def size_conditions(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The conditions on input sizes that a trace assumed, as Python code; `sizes_hold` evaluates one.

    Without it: a model that does something else with a longer text would not be noticed.
    """
    return tuple(program._guards_code)


@Needed
def sizes_hold(condition: str, sizes: Mapping[str, Sequence[int]]) -> bool:
    """Whether one of `size_conditions` is true for inputs of these sizes (input name -> shape).

    Without it: see `size_conditions`.
    """
    inputs = {name: torch.empty(tuple(size), device="meta") for name, size in sizes.items()}
    return bool(eval(condition, {"L": inputs, "math": math, "torch": torch}))


@Needed
def part_read(node: fx.Node) -> tuple[fx.Node, str] | None:
    """The node of a tensor subclass and the name of its part that a node reads; None for any other node.

    Without it: quantised weights keep a decoder from being compiled layer by layer.
    """
    if name_of(node.target) != "export::access_subclass_inner_tensor":
        return None
    whole, name = node.args
    assert isinstance(whole, fx.Node) and isinstance(name, str)
    return whole, name
