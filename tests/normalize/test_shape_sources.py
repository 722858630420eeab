"""type_as, expand_as and view_as, written as dtypes and sizes."""

import torch
from torch import fx
from torch.export import Dim

from qfpass.normalize.shape_sources import rewrite_shape_sources

aten = torch.ops.aten


class Like(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x [n, 1] and y [n, 3]."""
        wide = x.expand_as(y).type_as(y)
        return wide + y.flatten().view_as(y)


def test_the_other_tensor_gives_its_size_and_dtype_alone() -> None:
    x, y = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 3)
    sizes = ({0: Dim("n")}, {0: Dim("n")})
    module = torch.export.export(Like(), (x, y), dynamic_shapes=sizes, strict=False).module()
    rewrite_shape_sources(module.graph)
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    targets = {node.target for node in graph.nodes}
    assert not targets & {aten.type_as.default, aten.expand_as.default, aten.view_as.default}
    module.graph.lint()
    module.recompile()
    for n in (5, 8):
        x, y = torch.randn(n, 1, dtype=torch.float64), torch.randn(n, 3)
        torch.testing.assert_close(module(x, y), Like()(x, y))
