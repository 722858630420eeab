"""Read attention that is written out as a softmax over the last dimension between two matmuls.

It computes softmax(logits) @ value, where logits are query @ key^T, scaled, capped, masked and cast. The
graph is read from the softmax back to the product of query and key, and on to the product with the values.
"""

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.nodes import args_of, site_name
from ..graph.patterns import CASTS, permuted, product_with_values
from .logit_chain import LogitTerms, read_logits, unknown_operator_error
from .operators import AttentionCall

aten = torch.ops.aten


def read_softmax(module: fx.GraphModule, softmax: fx.Node, text: set[fx.Node]) -> AttentionCall | None:
    """The attention that `softmax` belongs to, or None if it belongs to something else, such as a router.

    Args:
        text: the nodes that depend on the tokens.

    Raises:
        UnsupportedOpError: the attention has a form that isn't understood; the message names the operator.
    """
    weights, output = product_with_values(softmax)
    if output is None:
        return None
    logits = LogitTerms(module, site_name(output), text)
    product = read_logits(logits, softmax)
    if product is None or sum(n in text for n in product.all_input_nodes) < 2:
        return None
    _require_plain(logits, softmax, product, output, weights)
    query, value = args_of(product)[0], args_of(output)[1]
    key = permuted(output, args_of(product)[1], [0, 1, 3, 2])
    dtype = value.meta["val"].dtype
    query, key = _uncast(query, dtype), _uncast(key, dtype)
    if not query.meta["val"].dtype == key.meta["val"].dtype == dtype:
        raise UnsupportedOpError(f"{logits.site}: query, key and value have different dtypes.")
    return AttentionCall(
        output, query, key, value, logits.scale, softcap=logits.softcap, sink=logits.sink,
        masks=tuple(logits.masks), factors=tuple(logits.factors),
    )  # fmt: skip


def _uncast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The node of `dtype` that `node` casts, else `node`: kernels accumulate in float32 without the cast."""
    source = args_of(node)[0] if node.target in CASTS else None
    return source if source is not None and source.meta["val"].dtype == dtype else node


def _require_plain(
    logits: LogitTerms, softmax: fx.Node, product: fx.Node, output: fx.Node, weights: fx.Node
) -> None:
    """Raise UnsupportedOpError unless this is softmax over keys between two matmuls of [B, H, ., .]."""
    for node in (product, output):
        if node.target is not aten.matmul.default or node.meta["val"].dim() != 4:
            raise unknown_operator_error(logits.site, node)
    if args_of(softmax)[1] not in (-1, softmax.meta["val"].dim() - 1):
        raise UnsupportedOpError(
            f"{logits.site}: its softmax runs over dimension {args_of(softmax)[1]}, not keys."
        )
    if str(output.meta["val"].shape[:2]) != str(product.meta["val"].shape[:2]):
        raise unknown_operator_error(logits.site, output)
    # Slices between the softmax and the product must cut off the sink's column and nothing else.
    if str(weights.meta["val"].shape[-2:]) != str(product.meta["val"].shape[-2:]):
        raise unknown_operator_error(logits.site, weights)
    if args_of(output)[0] is not weights or not isinstance(args_of(output)[1], fx.Node):
        raise unknown_operator_error(logits.site, output)
