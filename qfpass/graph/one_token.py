"""Products of a single token with weights, so that a step streams the weights once.

A decode step on a processor is little else than reading weights. The loops for it (`kernels/one_token.py`)
take weights where they lie, and so are shared by layers as the rest of their code is. Linears of one input
are one call of them.
"""

import operator
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import fx

from ..kernels.coded_linear import coded_linear
from ..kernels.one_token import fits, one_token_linears
from ..upstream.modules import parts_of
from ..upstream.operators import written_arguments
from .regions import Outlined

aten = torch.ops.aten


def stream_weights(outlined: Outlined) -> None:
    """Let every linear decide by its input's length; quantised weights are left to their own products."""
    for part in (outlined.body, outlined.head):
        if part is None or any(parts_of(p) for p in part.parameters()):
            continue
        for graph_module in part.modules():
            if isinstance(graph_module, fx.GraphModule):
                for together in _of_one_input(graph_module.graph):
                    _replace(graph_module.graph, together)
                graph_module.recompile()


def _of_one_input(graph: fx.Graph) -> list[list[fx.Node]]:
    """Linears that read the same input, unchanged; one whose weight is computed stays alone."""
    groups: dict[object, list[fx.Node]] = defaultdict(list)
    changes = 0
    for node in graph.nodes:
        if written_arguments(node.target):
            changes += 1
        if node.target is aten.linear.default:
            given = all(operand.op in ("placeholder", "get_attr") for operand in _operands(node))
            groups[(node.args[0], changes) if given else node].append(node)
    return list(groups.values())


def _operands(linear: fx.Node) -> list[fx.Node]:
    """Weight and bias."""
    return [operand for operand in linear.args[1:] if isinstance(operand, fx.Node)]


def _replace(graph: fx.Graph, together: Sequence[fx.Node]) -> None:
    first = together[0]
    for node in together:
        for operand in _operands(node):
            if operand.op == "get_attr":  # needs nothing, so it may stand before everything
                next(iter(graph.nodes)).prepend(operand)
    weights = [node.args[1] for node in together]
    biases = [node.args[2] if len(node.args) > 2 else None for node in together]
    with graph.inserting_before(first):
        outs = graph.call_function(linears, (first.args[0], weights, biases))
        for place, node in enumerate(together):
            out = graph.call_function(operator.getitem, (outs, place))
            out.meta = dict(node.meta)
            node.replace_all_uses_with(out)
    for node in together:
        graph.erase_node(node)


def linears(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    compact: Sequence[torch.Tensor] = (),
) -> list[torch.Tensor]:
    """x [B, S, K], weights [N, K] -> [B, S, N] each; one token in all by our loops, if they take the weights.

    One token reads `compact` in the weights' place, if there is one: see `compact_weights`.
    """
    if x.dim() != 3 or x.shape[0] != 1 or x.shape[1] != 1 or not (compact or fits(weights)):
        return [aten.linear.default(x, *operands) for operands in zip(weights, biases, strict=True)]
    rows = [weight.shape[0] for weight in weights]
    if len(compact) > 1:
        together = coded_linear(x.float(), *compact)
    else:
        together = one_token_linears(x.float(), list(compact or weights))
    return [
        (out if bias is None else out + bias).to(x.dtype)
        for out, bias in zip(together.split(rows, -1), biases, strict=True)
    ]
