"""In-place operations: rewritten where nothing else sees the change, left alone elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import fx

from qfpass.normalize.in_place import rewrite_in_place

T = torch.Tensor


def adds_to_fresh(x: T) -> T:
    y = x * 2
    y.add_(1)
    return y * y


def scatters(x: T) -> T:
    return torch.full_like(x, -1.0).scatter_(1, torch.tensor([[0], [1]]), x[:, :1])


def adds_twice(x: T) -> T:
    y = torch.nn.functional.linear(x, torch.eye(3))
    before = y * 3
    y.mul_(2).add_(before)
    return y + before


def adds_to_a_view(x: T) -> T:
    y = x * 2
    y[:, 0].add_(1)
    return y


def reads_its_shape(x: T) -> T:
    y = x * 2
    return y.masked_fill_((x[:, :1] > 1).expand(y.shape), 5.0) + torch.zeros_like(y)


def is_viewed(x: T) -> T:
    y = x * 2
    rows = y.transpose(0, 1)
    y.add_(1)
    return rows * 2


def changes_its_input(x: T) -> T:
    return x.add_(1) * 2


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[T], T]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: T) -> T:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "left"),
    [(adds_to_fresh, 0), (reads_its_shape, 0), (scatters, 0), (adds_twice, 0), (adds_to_a_view, 1),
     (is_viewed, 1), (changes_its_input, 1)],
)  # fmt: skip
def test_values_stay_the_same(function: Callable[[T], T], left: int) -> None:
    x = torch.arange(6.0).view(2, 3)
    module = torch.export.export(Function(function), (x,), strict=False).module()
    assert isinstance(module, fx.GraphModule)
    rewrite_in_place(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x.clone()), function(x.clone()))
    mutable = [
        n
        for n in module.graph.nodes
        if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable
    ]
    assert len(mutable) == left
