"""Linears that, for a single token, run in loops which read each weight once.

On a processor, a decode step spends nearly all its time on reading weights. The loops
(`kernels/cpu/step_linear`) take each layer's weights as operands, so layers of one kind share their code.
Linears that read the same input become one call.
"""

import operator
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import fx

from ..graph.nodes import args_of
from ..kernels.cpu.coded_linear.op import coded_linear
from ..kernels.cpu.step_linear.op import fits, one_token_linears
from ..upstream.modules import parts_of
from ..upstream.operators import written_arguments
from .outline import Outlined

aten = torch.ops.aten


def stream_weights(outlined: Outlined) -> None:
    """Replace the linears of body and head by calls of `linears`, in place.

    A part that has quantised weights is left as it is, since these have products of their own.
    """
    for part in (outlined.body, outlined.head):
        if part is None or any(parts_of(p) for p in part.parameters()):
            continue
        for graph_module in part.modules():
            if isinstance(graph_module, fx.GraphModule):
                for together in _groups_by_input(graph_module.graph):
                    _replace(graph_module.graph, together)
                graph_module.recompile()


def _groups_by_input(graph: fx.Graph) -> list[list[fx.Node]]:
    """Groups of linears that read the same input; a linear whose weight is computed is a group alone."""
    groups: dict[object, list[fx.Node]] = defaultdict(list)
    changes = 0  # writes in place so far: the same node may hold other numbers after one
    for node in graph.nodes:
        if written_arguments(node.target):
            changes += 1
        if node.target is aten.linear.default:
            is_held = all(operand.op in ("placeholder", "get_attr") for operand in _operands(node))
            groups[(args_of(node)[0], changes) if is_held else node].append(node)
    return list(groups.values())


def _operands(linear: fx.Node) -> list[fx.Node]:
    """The nodes of a linear's weight and bias."""
    return [operand for operand in args_of(linear)[1:] if isinstance(operand, fx.Node)]


def _replace(graph: fx.Graph, together: Sequence[fx.Node]) -> None:
    first = together[0]
    for node in together:
        for operand in _operands(node):
            if operand.op == "get_attr":  # has no inputs, so it can move to the front of the graph
                next(iter(graph.nodes)).prepend(operand)
    weights = [args_of(node)[1] for node in together]
    biases = [args_of(node)[2] if len(args_of(node)) > 2 else None for node in together]
    with graph.inserting_before(first):
        outs = graph.call_function(linears, (args_of(first)[0], weights, biases))
        for i, node in enumerate(together):
            out = graph.call_function(operator.getitem, (outs, i))
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
    """The products [B, S, N] of x [B, S, K] with each weight [N, K], plus its bias.

    If x is a single token in all (B = S = 1), this package's loops compute them, provided that they take the
    weights. If `compact_weights` made a copy, `compact`, the loops read it instead of the weights.
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
