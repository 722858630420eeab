"""What a nested region can't hold, taken apart before a graph is cut into regions."""

import torch
from torch import fx

aten = torch.ops.aten


def part_biases(module: fx.GraphModule) -> None:
    """Add the bias of each linear in a node of its own.

    Inside a nested region, PyTorch's linear with a bias asks for its input's length as a number, which
    would fix it for good; without one it doesn't.
    """
    graph = module.graph
    linears = [node for node in graph.nodes if node.target is aten.linear.default]
    with_bias = [node for node in linears if len(node.args) == 3 and node.args[2] is not None]
    for node in with_bias:
        with graph.inserting_after(node):
            biased = graph.call_function(aten.add.Tensor, (node, node.args[2]))
        biased.meta = dict(node.meta)
        node.replace_all_uses_with(biased, delete_user_cb=lambda user, b=biased: user is not b)
        node.args = node.args[:2]
    if with_bias:
        module.recompile()


def part_complex(module: fx.GraphModule) -> set[fx.Node]:
    """Take complex numbers (of rotary positions) apart where they are made, and together where they are used.

    A nested region can't take complex inputs; the nodes that put them together, which are given back, are
    made in every region.
    """
    graph, together = module.graph, set[fx.Node]()
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_complex() or node.op == "output":
            continue
        with graph.inserting_after(node):
            parts = graph.call_function(aten.view_as_real.default, (node,))
        with graph.inserting_after(parts):
            whole = graph.call_function(aten.view_as_complex.default, (parts,))
        parts.meta = {**node.meta, "val": torch.view_as_real(value)}
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, p=parts: user is not p)
        together.add(whole)
    if together:
        module.recompile()
    return together
