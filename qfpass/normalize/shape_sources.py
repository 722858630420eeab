"""Replace operators that take a shape or dtype from another tensor, so that its values don't look read."""

import torch
from torch import fx

from ..graph.nodes import args_of, insert

aten = torch.ops.aten
_SHAPED = {aten.expand_as.default: aten.expand.default, aten.view_as.default: aten.reshape.default}


def rewrite_shape_sources(graph: fx.Graph) -> None:
    """Rewrite type_as, expand_as and view_as in `graph` with sizes and dtypes, in place.

    Nodes need their traced value as `meta["val"]`.
    """
    for node in list(graph.nodes):
        if node.target is aten.type_as.default:
            node.target, node.args = aten.to.dtype, (args_of(node)[0], node.meta["val"].dtype)
        elif node.target in _SHAPED:
            source, like = args_of(node)
            dims = range(like.meta["val"].dim())
            sizes = [insert(node, aten.sym_size.int, like, dim) for dim in dims]
            node.target, node.args = _SHAPED[node.target], (source, sizes)
