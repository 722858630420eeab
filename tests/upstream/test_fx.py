"""What torch promises of equal nodes and graphs as bytes."""

import torch
from torch import fx, nn

from qfpass.upstream.fx import (
    graph_pickling,
    merge_equal_nodes,
)

aten = torch.ops.aten


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).sin() + self.inner(x).sin()


def exported() -> fx.Graph:
    rows = torch.export.Dim("rows")
    return torch.export.export(Doubled(), (torch.ones(4, 3),), dynamic_shapes=({0: rows},)).graph


def test_merge_equal_nodes_computes_what_is_equal_once() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    once, again = (graph.call_function(aten.add.Tensor, (x, 1)) for _ in range(2))
    other = graph.call_function(aten.add.Tensor, (x, 2))
    graph.output(graph.call_function(aten.cat.default, ([once, again, other],)))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(3)
    merged = merge_equal_nodes(graph)
    (first, second, third) = merged.output_node().args[0].args[0]  # type: ignore[union-attr,misc]
    assert first is second and third is not first
    assert first.meta["val"] is once.meta["val"]
    assert len(graph.nodes) == len(merged.nodes) + 1


def test_graph_pickling_keeps_operators_values_and_places() -> None:
    pickling = graph_pickling()
    assert pickling is not None
    graph = exported()
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        paths = {name: (path, str(kind)) for name, (path, kind) in stack.items()}
        node.meta = {"val": node.meta.get("val"), "nn_module_stack": paths}
    again = pickling.load(pickling.dump(graph))
    again.lint()
    for before, after in zip(graph.nodes, again.nodes, strict=True):
        assert (before.op, before.name, before.target) == (after.op, after.name, after.target)
        assert str(before.args) == str(after.args)
        value, same = before.meta["val"], after.meta["val"]
        assert type(value) is type(same)
        if isinstance(value, torch.Tensor):
            assert (str(value.shape), value.dtype) == (str(same.shape), same.dtype)
        assert before.meta["nn_module_stack"] == after.meta["nn_module_stack"]
    symbols = {type(size) for node in again.nodes for size in getattr(node.meta["val"], "shape", ())}
    assert torch.SymInt in symbols
