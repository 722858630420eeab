"""The vocabulary size of a decoder, read off its graph."""

import torch
from torch import fx

from .nodes import args_of, attribute, operator_name

aten = torch.ops.aten
# Operators that give the same ids in another shape or dtype.
_SAME_IDS = {
    "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::to", "aten::_to_copy", "aten::clone",
    "aten::contiguous", "aten::alias", "aten::detach",
}  # fmt: skip


def vocabulary(module: fx.GraphModule) -> int | None:
    """The number of rows of the smallest weight table that the token ids index; None if they index none."""
    sizes = []
    for node in module.graph.nodes:
        if node.target is aten.embedding.default and _are_ids(args_of(node)[1]):
            table = args_of(node)[0]
            if table.op == "get_attr":
                weight = attribute(module, table)
                assert isinstance(weight, torch.Tensor)
                sizes.append(weight.shape[0])
    return min(sizes, default=None)


def _are_ids(node: fx.Node) -> bool:
    while operator_name(node) in _SAME_IDS:
        node = args_of(node)[0]
    return node.op == "placeholder" and node.name == "input_ids"
