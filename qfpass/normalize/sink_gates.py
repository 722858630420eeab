"""Write a learned sink that gates the output by the logits' log-sum-exp as one more logit.

softmax(x) @ v * sigmoid(logsumexp(x) - sink) equals a softmax over x and the sink, whose value is 0, times v.
"""

from collections.abc import Iterator

import torch
from torch import fx

from ..graph.nodes import args_of, insert, operator_name, operator_of
from ..graph.patterns import CASTS, RESHAPES, SOFTMAX, keeps_last_two, product_with_values

aten = torch.ops.aten
_ADDS_A_DIMENSION = {aten.unsqueeze.default, *RESHAPES}


def rewrite_sink_gates(graph: fx.Graph) -> None:
    """Rewrite the sink gates of `graph` in place; what isn't one for certain is left as it is.

    Nodes need their traced value as `meta["val"]`.
    """
    for lse in list(graph.nodes):
        if lse.target is not aten.logsumexp.default or not _over_keys(lse):
            continue
        gated, sink = _gated(lse)
        for softmax in _softmaxes(args_of(lse)[0]):
            chain = _chain(softmax, gated)
            if gated is not None and sink is not None and chain is not None:
                gated.replace_all_uses_with(_with_sink_logit(gated, softmax, chain, sink))
                break
    graph.eliminate_dead_code()


def _over_keys(lse: fx.Node) -> bool:
    """Whether a log-sum-exp runs over the last dimension of logits with four or more."""
    logits, over = args_of(lse)[:2]
    dims = logits.meta["val"].dim()
    return bool(dims >= 4 and list(over) in ([-1], [dims - 1]))


def _gated(lse: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The product of an output with sigmoid(lse - sink), and the sink, one number per head; else two Nones.

    The gate must have one number per row of the output, and nothing else may read it.
    """
    node, sink, done = lse, None, False
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.mul.Tensor and done:
            rows = str([*user.meta["val"].shape[:-1], 1])
            return (user, sink) if str(list(node.meta["val"].shape)) == rows else (None, None)
        if user.target is aten.sub.Tensor and sink is None and _is_one_a_head(user, node, lse):
            sink = args_of(user)[1]
        elif user.target is aten.sigmoid.default and sink is not None and not done:
            done = True
        elif user.target not in CASTS and user.target not in _ADDS_A_DIMENSION:
            break
        node = user
    return None, None


def _is_one_a_head(less: fx.Node, node: fx.Node, lse: fx.Node) -> bool:
    """Whether `less` subtracts one number per head from `node` [B, *heads, S] or [B, *heads, S, 1]."""
    left, right = args_of(less)[:2]
    if left is not node or not isinstance(right, fx.Node) or less.kwargs.get("alpha", 1) != 1:
        return False
    heads = list(args_of(lse)[0].meta["val"].shape[1:-2])
    minus, dims = right.meta["val"].shape, node.meta["val"].dim()
    return [1] * (dims - len(minus)) + list(minus) == [1, *heads, *[1] * (dims - 1 - len(heads))]


def _softmaxes(logits: fx.Node) -> Iterator[fx.Node]:
    """The softmaxes over `logits` or over casts of them."""
    while logits.target in CASTS:
        logits = args_of(logits)[0]
    pending = [logits]
    for node in pending:
        if operator_name(node) in SOFTMAX and not node.kwargs:
            yield node
        elif node is logits or node.target in CASTS:
            pending.extend(node.users)


def _chain(softmax: fx.Node, gated: fx.Node | None) -> list[fx.Node] | None:
    """The nodes between `softmax` and the gated product, by way of the product with the values.

    None if there is no such way, or if nodes on it have other users.
    """
    output = product_with_values(softmax)[1]
    if output is None or gated is None:
        return None
    chain, node = list[fx.Node](), softmax
    while len(node.users) == 1:
        (node,) = node.users
        if node is gated:
            return chain if output in chain else None
        if output in chain and not (node.target in RESHAPES and keeps_last_two(node)):
            return None
        chain.append(node)
    return None


def _with_sink_logit(gated: fx.Node, softmax: fx.Node, chain: list[fx.Node], sink: fx.Node) -> fx.Node:
    """The gated output, computed anew before `gated` from a softmax that has the sink as one more logit."""
    logits = args_of(softmax)[0]
    sizes = [insert(gated, aten.sym_size.int, logits, dim) for dim in (0, logits.meta["val"].dim() - 2)]
    heads = list(logits.meta["val"].shape[1:-2])
    column = insert(gated, aten.reshape.default, sink, [1, *heads, 1, 1])
    column = insert(gated, aten.expand.default, column, [sizes[0], *heads, sizes[1], 1])
    made = insert(gated, aten.cat.default, [logits, column], -1)
    made = insert(gated, operator_of(softmax), made, *args_of(softmax)[1:])
    made = insert(gated, aten.slice.Tensor, made, -1, 0, -1)
    for node in chain:
        made = insert(gated, operator_of(node), made, *args_of(node)[1:], **node.kwargs)
    return made
