"""Parts of quantised weights are attributes of their own, also where a subclass holds another."""

import torch
from torch import fx, nn

from qfpass.normalize.weight_parts import rewrite_weight_parts


def test_a_part_of_a_part_is_one_attribute() -> None:
    graph = fx.Graph()
    read = torch.ops.export.access_subclass_inner_tensor.default
    whole = graph.get_attr("layer.weight")
    inner = graph.call_function(read, (whole, "inner"))
    scale = graph.call_function(read, (whole, "scale"))
    numbers = graph.call_function(read, (inner, "numbers"))
    graph.output(graph.call_function(torch.mul, (numbers, scale)))
    rewrite_weight_parts(graph)
    root = nn.Module()
    root.layer = nn.Module()
    root.layer.weight = nn.Module()  # a tensor that has these attributes, in a model
    root.layer.weight.inner = nn.Module()
    root.layer.weight.inner.numbers, root.layer.weight.scale = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
    module = fx.GraphModule(root, graph)
    graph.lint()
    assert {node.target for node in graph.nodes if node.op == "get_attr"} == {
        "layer.weight.inner.numbers",
        "layer.weight.scale",
    }
    torch.testing.assert_close(module(), torch.tensor([3.0, 6.0]))
