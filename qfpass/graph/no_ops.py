"""Nodes that give what they are given."""

import torch
from torch import fx

aten = torch.ops.aten


def drop_no_ops(graph: fx.Graph) -> None:
    """Who reads such a node reads what it is given."""
    for node in list(graph.nodes):
        if _is_no_op(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_no_op(node: fx.Node) -> bool:
    """A cast to the same dtype and device, a slice of everything, an inference dropout, an alias."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    if node.target in (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other):
        return before.dtype == after.dtype and before.device == after.device
    if node.target is aten.slice.Tensor:
        start, end, step = (*node.args[2:], *(0, None, 1)[len(node.args[2:]) :])
        return start in (0, None) and end in (None, torch.iinfo(torch.int64).max) and step == 1
    if node.target is aten.dropout.default:
        return node.args[2] is False
    return node.target in (aten.alias.default, aten.detach_.default, aten.detach.default)
