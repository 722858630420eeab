"""Vocabulary: which token ids a decoder takes, read off its graph."""

import torch

from .capture import Captured
from .dependence import attribute

aten = torch.ops.aten


def vocabulary(captured: Captured) -> int | None:
    """Ids below this are rows of every table that the ids index; None if they index no table of weights."""
    sizes = []
    for node in captured.module.graph.nodes:
        if node.target is aten.embedding.default and getattr(node.args[1], "name", "") == "input_ids":
            table = node.args[0]
            if table.op == "get_attr":
                weight = attribute(captured.module, table)
                assert isinstance(weight, torch.Tensor)
                sizes.append(weight.shape[0])
    return min(sizes, default=None)
