"""What torch.export promises of the modules it makes, the grad mode, its refusals and its checks."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from qfpass.upstream.export import (
    depends_on_values,
    grad_mode_call,
    is_check,
    part_read,
    size_conditions,
    sizes_hold,
)


class Careful(nn.Module):
    """Half of it without gradients, as rotary embeddings are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x.sin()
        return y + x


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() if x.sum() > 0 else x.cos()


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("its own")


def export(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module, (torch.ones(3),), strict=False)


class Learning(nn.Module):
    """Half of it with gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = x.sin()
        return y + x


def test_grad_mode_call_holds_what_runs_in_another_mode() -> None:
    with torch.no_grad():
        module = export(Learning()).module()
    assert isinstance(module, fx.GraphModule)
    calls = [call for call in map(grad_mode_call, module.graph.nodes) if call]
    assert len(calls) == 1
    body = getattr(module, str(calls[0].body.target)).graph
    assert [node.op for node in body.nodes] == ["placeholder", "call_function", "output"]
    assert isinstance(body.output_node().args[0], tuple)
    assert [operand.name for operand in calls[0].operands] == ["x"]


@pytest.mark.parametrize(("module", "expected"), [(Branching(), True), (Failing(), False)])
def test_depends_on_values_tells_a_branch_from_other_failures(module: nn.Module, expected: bool) -> None:
    with pytest.raises(Exception) as refused:  # noqa: PT011
        export(module)
    assert depends_on_values(refused.value) is expected


class Casts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float64).view(-1, 2)


def test_is_check_finds_all_that_a_graph_must_be_without() -> None:
    rows = {0: torch.export.Dim.AUTO}
    program = torch.export.export(Casts(), (torch.ones(4, 2),), dynamic_shapes=(rows,), strict=False)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    with pytest.raises(Exception, match=r"(?i)guard"):
        module(torch.ones(4, 3))
    checks = [node for node in module.graph.nodes if is_check(node)]
    assert {node.op for node in checks} == {"call_module", "call_function"}
    for node in checks:
        module.graph.erase_node(node)
    assert not [node for node in module.graph.nodes if node.op == "call_module"]
    module.recompile()
    x = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    torch.testing.assert_close(module(x), x.view(-1, 2))


class Branches(nn.Module):
    """Something else for rows of another length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] ** 2 > 90 and x.shape[1] % 4 else x


def test_size_conditions_are_those_of_the_branches_taken() -> None:
    shape = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Branches(), (torch.ones(2, 11),), dynamic_shapes=(shape,), strict=False)
    conditions = size_conditions(program)
    holding = [n for n in range(2, 15) if all(sizes_hold(c, {"x": (2, n)}) for c in conditions)]
    assert holding == [10, 11, 13, 14]


def test_sizes_hold_asks_the_inputs_by_name() -> None:
    condition = "(L['x'].size()[1] // 4) <= 2 and L['y'].stride()[0] == L['x'].size()[1]"
    assert sizes_hold(condition, {"x": (2, 11), "y": (2, 11)})
    assert not sizes_hold(condition, {"x": (2, 12), "y": (2, 12)})
    assert not sizes_hold(condition, {"x": (2, 11), "y": (2, 10)})


class Doubled(torch.Tensor):
    """A weight that is twice the numbers it holds."""

    @staticmethod
    def __new__(cls, half: torch.Tensor) -> "Doubled":
        return torch.Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype)

    def __init__(self, half: torch.Tensor) -> None:
        self.half_of_it = half

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["half_of_it"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], *_: object) -> "Doubled":
        return Doubled(parts["half_of_it"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.mul, torch.Tensor.mul):
            return func(*(2 * a.half_of_it if isinstance(a, Doubled) else a for a in args))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.detach.default
        return Doubled(args[0].half_of_it)


class Weighing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(Doubled(torch.ones(3)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, self.weight)


def test_part_read_names_the_part_of_a_subclass_that_a_node_reads() -> None:
    graph = export(Weighing()).module().graph
    found = [read for node in graph.nodes if (read := part_read(node))]
    assert [(whole.target, name) for whole, name in found] == [("weight", "half_of_it")]
