"""Attention written out: a softmax over the last dimension between two matmuls.

softmax(query @ key^T, scaled, capped, masked, cast) @ value. From the softmax the graph is read downwards
to the product of query and key, and upwards to the product with the values.
"""

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .calls import Call, site_name
from .logits import CASTS, PRODUCTS, Logits, read_logits, unknown
from .products import RESHAPES, keeps_last_two, permuted

aten = torch.ops.aten
SOFTMAX = {"aten::softmax", "aten::_softmax", "aten::_safe_softmax"}


def read_softmax(module: fx.GraphModule, softmax: fx.Node, text: set[fx.Node]) -> Call | None:
    """The attention around `softmax`, or None if it is something else, such as a router.

    Args:
        text: the nodes that depend on the tokens.

    Raises:
        UnsupportedOpError: it is an attention, but of a form that isn't known; names the operation.
    """
    weights, output = product_with_values(softmax)
    if output is None:
        return None
    logits = Logits(module, site_name(output), text)
    product = read_logits(logits, softmax)
    if product is None or sum(n in text for n in product.all_input_nodes) < 2:
        return None
    _require_plain(logits, softmax, product, output, weights)
    query, value = product.args[0], output.args[1]
    key = permuted(output, product.args[1], [0, 1, 3, 2])
    dtype = value.meta["val"].dtype
    query, key = _uncast(query, dtype), _uncast(key, dtype)
    if not query.meta["val"].dtype == key.meta["val"].dtype == dtype:
        raise UnsupportedOpError(f"{logits.site}: query, key and value have different dtypes.")
    return Call(
        output, query, key, value, logits.scale, softcap=logits.softcap, sink=logits.sink,
        masks=tuple(logits.masks), factors=tuple(logits.factors),
    )  # fmt: skip


def product_with_values(softmax: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The weights as they go into the product with the values, alone, and that product."""
    node = softmax
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in PRODUCTS:
            return node, user
        folds = user.target in RESHAPES and keeps_last_two(user)
        if user.target not in CASTS and user.target is not aten.slice.Tensor and not folds:
            return node, None
        node = user
    return node, None


def _uncast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """What was cast to a wider dtype for the product alone: kernels add up in float32 anyway."""
    source = node.args[0] if node.target in CASTS else None
    return source if source is not None and source.meta["val"].dtype == dtype else node


def _require_plain(
    logits: Logits, softmax: fx.Node, product: fx.Node, output: fx.Node, weights: fx.Node
) -> None:
    for node in (product, output):
        if node.target is not aten.matmul.default or node.meta["val"].dim() != 4:
            raise unknown(logits.site, node)
    if softmax.args[1] not in (-1, softmax.meta["val"].dim() - 1):
        raise UnsupportedOpError(
            f"{logits.site}: its softmax runs over dimension {softmax.args[1]}, not keys."
        )
    if str(output.meta["val"].shape[:2]) != str(product.meta["val"].shape[:2]):
        raise unknown(logits.site, output)
    # The sink's column is cut off, and nothing else is.
    if str(weights.meta["val"].shape[-2:]) != str(product.meta["val"].shape[-2:]):
        raise unknown(logits.site, weights)
    if output.args[0] is not weights or not isinstance(output.args[1], fx.Node):
        raise unknown(logits.site, output)
