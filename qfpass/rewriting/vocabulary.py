"""The vocabulary size of a decoder, read off its graph."""

import torch

from ..graph.captured import Captured
from ..graph.nodes import args_of, attribute

aten = torch.ops.aten


def vocabulary(captured: Captured) -> int | None:
    """The number of rows of the smallest weight table that the token ids index; None if they index none."""
    sizes = []
    for node in captured.module.graph.nodes:
        if node.target is aten.embedding.default and getattr(args_of(node)[1], "name", "") == "input_ids":
            table = args_of(node)[0]
            if table.op == "get_attr":
                weight = attribute(captured.module, table)
                assert isinstance(weight, torch.Tensor)
                sizes.append(weight.shape[0])
    return min(sizes, default=None)
