"""Learned sinks in one form: a gate on the output by the logits' log-sum-exp, written as one more logit.

softmax(x) @ v * sigmoid(logsumexp(x) - sink) is what a softmax over x and the sink gives, its value nothing.
"""

from collections.abc import Iterator

import torch
from torch import fx

from .calls import operator_name
from .logits import CASTS
from .products import RESHAPES, insert, keeps_last_two
from .softmax import SOFTMAX, product_with_values

aten = torch.ops.aten
_ADDS_A_DIMENSION = {aten.unsqueeze.default, *RESHAPES}


def spell_sinks(graph: fx.Graph) -> None:
    """Rewrite such gates in place; nodes need their `val`. What isn't one for certain is left as it is."""
    for lse in list(graph.nodes):
        if lse.target is not aten.logsumexp.default or not _over_keys(lse):
            continue
        gated, sink = _gated(lse)
        for softmax in _softmaxes(lse.args[0]):
            chain = _chain(softmax, gated)
            if chain is not None:
                gated.replace_all_uses_with(_beside_sink(gated, softmax, chain, sink))
                break
    graph.eliminate_dead_code()


def _over_keys(lse: fx.Node) -> bool:
    return lse.args[0].meta["val"].dim() >= 4 and list(lse.args[1]) in (
        [-1],
        [lse.args[0].meta["val"].dim() - 1],
    )


def _gated(lse: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The only product that sigmoid(lse - sink) goes into, row by row, and the sink, one number a head."""
    node, sink, done = lse, None, False
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.mul.Tensor and done:
            rows = str([*user.meta["val"].shape[:-1], 1])
            return (user, sink) if str(list(node.meta["val"].shape)) == rows else (None, None)
        if user.target is aten.sub.Tensor and sink is None and _is_one_a_head(user, node, lse):
            sink = user.args[1]
        elif user.target is aten.sigmoid.default and sink is not None and not done:
            done = True
        elif user.target not in CASTS and user.target not in _ADDS_A_DIMENSION:
            break
        node = user
    return None, None


def _is_one_a_head(less: fx.Node, node: fx.Node, lse: fx.Node) -> bool:
    """Whether `less` is `node` [B, *heads, S] or [B, *heads, S, 1] less one number for each of the heads."""
    if less.args[0] is not node or not isinstance(less.args[1], fx.Node) or less.kwargs.get("alpha", 1) != 1:
        return False
    heads = list(lse.args[0].meta["val"].shape[1:-2])
    minus, dims = less.args[1].meta["val"].shape, node.meta["val"].dim()
    return [1] * (dims - len(minus)) + list(minus) == [1, *heads, *[1] * (dims - 1 - len(heads))]


def _softmaxes(logits: fx.Node) -> Iterator[fx.Node]:
    """The softmaxes over the same logits, whatever these are cast to."""
    while logits.target in CASTS:
        logits = logits.args[0]
    pending = [logits]
    for node in pending:
        if operator_name(node) in SOFTMAX and not node.kwargs:
            yield node
        elif node is logits or node.target in CASTS:
            pending.extend(node.users)


def _chain(softmax: fx.Node, gated: fx.Node | None) -> list[fx.Node] | None:
    """What leads from a softmax over its product with the values to the gate's product, both left out."""
    output = product_with_values(softmax)[1]
    if output is None or gated is None:
        return None
    chain, node = list[fx.Node](), softmax
    while True:
        (node,) = node.users if len(node.users) == 1 else (None,)
        if node is gated:
            return chain if output in chain else None
        folds = node is not None and node.target in RESHAPES and keeps_last_two(node)
        if node is None or (output in chain and not folds):
            return None
        chain.append(node)


def _beside_sink(gated: fx.Node, softmax: fx.Node, chain: list[fx.Node], sink: fx.Node) -> fx.Node:
    """What the gate would weigh, made anew of a softmax whose last column is the sink's."""
    logits = softmax.args[0]
    sizes = [insert(gated, aten.sym_size.int, logits, dim) for dim in (0, logits.meta["val"].dim() - 2)]
    heads = list(logits.meta["val"].shape[1:-2])
    column = insert(gated, aten.reshape.default, sink, [1, *heads, 1, 1])
    column = insert(gated, aten.expand.default, column, [sizes[0], *heads, sizes[1], 1])
    made = insert(gated, aten.cat.default, [logits, column], -1)
    made = insert(gated, softmax.target, made, *softmax.args[1:])
    made = insert(gated, aten.slice.Tensor, made, -1, 0, -1)
    for node in chain:
        made = insert(gated, node.target, made, *node.args[1:], **node.kwargs)
    return made
