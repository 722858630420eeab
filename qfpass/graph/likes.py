"""Shapes and dtypes taken from another tensor, written as sizes and dtypes, so that only values look read."""

import torch
from torch import fx

from .products import insert

aten = torch.ops.aten
_SHAPED = {aten.expand_as.default: aten.expand.default, aten.view_as.default: aten.reshape.default}


def spell_likes(graph: fx.Graph) -> None:
    """Rewrite type_as, expand_as and view_as in place; nodes need their `val`."""
    for node in list(graph.nodes):
        if node.target is aten.type_as.default:
            node.target, node.args = aten.to.dtype, (node.args[0], node.meta["val"].dtype)
        elif node.target in _SHAPED:
            source, like = node.args
            dims = range(like.meta["val"].dim())
            sizes = [insert(node, aten.sym_size.int, like, dim) for dim in dims]
            node.target, node.args = _SHAPED[node.target], (source, sizes)
