"""torch.export: what it leaves out, leaves behind, puts into a graph and refuses."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from .entry import Needed, only_fast
from .operators import name_of
from .settings import as_it_is


@only_fast("lean_tracing", plain=as_it_is)
def lazily_made_modules() -> AbstractContextManager[Any]:
    """Inside, no Python is generated for the modules that torch.export makes on its way and never calls.

    Without it: it is generated.
    """
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    return _use_lazy_graph_module(True)


@only_fast("lean_tracing", plain=as_it_is)
def without_grad_mode() -> AbstractContextManager[Any]:
    """Inside, what runs under torch.no_grad() is traced, the switching of the grad mode isn't.

    torch.export makes modules of the parts between, and takes them apart again: a tenth of the time.

    Without it: it takes that time.
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
        with self._hidden():  # from the modes below, of which one records it
            return func(*args)


class GradModeCall(NamedTuple):
    """A node that holds the graph of what runs in another grad mode, and what that is given."""

    body: fx.Node
    operands: tuple[Any, ...]


@Needed
def grad_mode_call(node: fx.Node) -> GradModeCall | None:
    """What a node calls in another grad mode, giving a tuple; None of another node.

    Without it: a model that switches gradients on is refused, unless the tracing is lean.
    """
    if node.target is not getattr(torch.ops.higher_order, "wrap_with_set_grad_enabled", None):
        return None
    _, body, *operands = node.args
    assert isinstance(body, fx.Node)
    return GradModeCall(body, tuple(operands))


@only_fast("lean_tracing", plain=lambda: None)
def forget_last_trace() -> None:
    """Let go of the last trace, which torch.export keeps for a message about tensors that outlive it.

    Without it: that memory is held until the next export.
    """
    from torch.fx.experimental import proxy_tensor

    proxy_tensor._FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT.clear()


@Needed
def depends_on_values(error: Exception) -> bool:
    """Whether torch.export refused a model that branches on, or takes a size from, numbers in tensors.

    Without it: the refusal is told in torch's own words.
    """
    return "GuardOnDataDependentSymNode" in (kind.__name__ for kind in type(error).__mro__)


@Needed
def is_check(node: fx.Node) -> bool:
    """Whether a node only checks what the trace took for granted.

    Without it: a graph would refuse sizes and rewritten values that it works with.
    """
    if node.op == "call_module":
        return str(node.target) == "_guards_fn"
    return name_of(node.target) == "aten::_assert_tensor_metadata"


@Needed
def size_conditions(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """What a trace took for granted of its inputs' sizes; `sizes_hold` tells for which sizes each is true.

    Without it: a model that does something else with a longer text would not be noticed.
    """
    return tuple(program._guards_code)


@Needed
def sizes_hold(condition: str, sizes: Mapping[str, Sequence[int]]) -> bool:
    """Whether one of `size_conditions` is true for inputs of these sizes, by name.

    Without it: as without those.
    """
    inputs = {name: torch.empty(tuple(size), device="meta") for name, size in sizes.items()}
    return bool(eval(condition, {"L": inputs, "math": math, "torch": torch}))
