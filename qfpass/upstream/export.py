"""torch.export: faster tracing, nodes that it adds to a graph, its errors and its size conditions."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from .entry import Needed, only_fast
from .operators import name_of
from .settings import no_change


@only_fast("lean_tracing", plain=no_change)
def lazily_made_modules() -> AbstractContextManager[Any]:
    """A context in which torch.export generates no Python for intermediate modules that it never calls.

    Without it: that Python is generated.
    """
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    return _use_lazy_graph_module(True)


@only_fast("lean_tracing", plain=no_change)
def without_grad_mode() -> AbstractContextManager[Any]:
    """A context in which tracing ignores changes of the grad mode, such as torch.no_grad().

    torch.export would make a module of each part between two changes and inline it again, which takes a
    tenth of its time.

    Without it: torch.export takes that time.
    """
    return _WithoutGradMode(torch._C._set_grad_enabled, torch._C.DisableTorchFunction)


class _WithoutGradMode(TorchFunctionMode):
    def __init__(self, switch: Any, hidden: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._switch, self._hidden = switch, hidden

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not self._switch:
            return func(*args, **(kwargs or {}))
        with self._hidden():  # from the modes below, one of which would trace the call
            return func(*args)


class GradModeCall(NamedTuple):
    """A call of a subgraph in another grad mode: the node that holds the graph, and the call's operands."""

    body: fx.Node
    operands: tuple[Any, ...]


@Needed
def grad_mode_call(node: fx.Node) -> GradModeCall | None:
    """The grad mode call that a node makes, which returns a tuple; None for any other node.

    Without it: a model that switches gradients on is refused, unless the tracing is lean.
    """
    if node.target is not getattr(torch.ops.higher_order, "wrap_with_set_grad_enabled", None):
        return None
    _, body, *operands = node.args
    assert isinstance(body, fx.Node)
    return GradModeCall(body, tuple(operands))


@only_fast("lean_tracing", plain=lambda: None)
def forget_last_trace() -> None:
    """Free the last trace, which torch.export keeps for an error message about tensors that outlive it.

    Without it: that memory is held until the next export.
    """
    from torch.fx.experimental import proxy_tensor

    proxy_tensor._FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT.clear()


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
