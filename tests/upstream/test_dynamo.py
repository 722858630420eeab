"""What Dynamo promises of marked sizes, of its guards, and of how often it compiles."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.upstream import dynamo


class Counter(nn.Module):
    """Counts as many graphs as it is compiled to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + x.shape[0]


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graphs(lengths: Sequence[int], mark: Callable[[torch.Tensor], None], **asked: Any) -> int:
    """How many graphs calls of these lengths take."""
    module = Counter()
    compiled = torch.compile(module.forward, backend="eager", fullgraph=True, **asked)
    for length in lengths:
        x = torch.ones(length)
        mark(x)
        compiled(x)
    return dynamo.graphs_of(Counter.forward.__code__)


def test_graphs_of_code_counts_what_was_compiled() -> None:
    with dynamo.sizes_are_fixed():
        assert graphs([3], lambda x: None, dynamic=None) == 1
    torch.compiler.reset()
    assert dynamo.graphs_of(Counter.forward.__code__) == 0
    assert graphs([3, 4], lambda x: None, dynamic=False) == 2


def test_mark_dynamic_makes_one_graph_of_all_lengths() -> None:
    assert graphs([3, 7, 2], lambda x: dynamo.mark_dynamic(x, 0)) == 1
    torch.compiler.reset()
    assert graphs([3, 7, 2], lambda x: dynamo.mark_dynamic(x, 0, 2, 8)) == 1


def test_maybe_mark_dynamic_does_too() -> None:
    assert graphs([3, 7, 2], lambda x: dynamo.maybe_mark_dynamic(x, 0)) == 1


def test_mark_unbacked_knows_no_special_length() -> None:
    assert graphs([3, 0, 1, 7], lambda x: dynamo.mark_unbacked(x, 0)) == 1


@pytest.mark.parametrize("fixed", [True, False])
def test_sizes_are_fixed_though_all_are_dynamic_around(fixed: bool) -> None:
    inputs_of_graph = list[type]()

    def note(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        inputs_of_graph.extend(map(type, examples))
        return graph

    def compile_anew(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        def call(*inputs: Any) -> Any:
            with dynamo.sizes_are_fixed() if fixed else nullcontext():
                return (torch.compile(torch.neg, backend=note)(torch.ones(5)),)

        return call

    torch.compile(lambda x: x + 1, backend=compile_anew, dynamic=True)(torch.ones(3))
    assert torch.Tensor in inputs_of_graph
    assert (torch.SymInt in inputs_of_graph) != fixed


def test_recompiling_at_most_refuses_more() -> None:
    with dynamo.recompiling_at_most(2), pytest.raises(Exception, match="recompile_limit"):
        graphs([3, 4, 5], lambda x: None, dynamic=False)
    assert graphs([6], lambda x: None, dynamic=False) >= 1
