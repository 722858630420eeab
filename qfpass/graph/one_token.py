"""Products of a single token with weights, so that Inductor streams the weights once.

A decode step on a processor is little else than reading weights, and the library's matrix-vector product
reaches half of what memory gives. Written as multiply and sum, it becomes a loop of Inductor's own that
does better, takes the weights where they lie, and so is shared by layers as the rest of their code is.

A loop that reads one row after the other waits for memory; one that reads four rows far apart, and sums
them side by side, keeps it busy. Linears of one input are such rows; a weight that has none
beside it is cut into parts, which Inductor fuses into one loop.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..kernels.coded_linear import coded_linear
from ..kernels.concatenate import concatenate
from ..kernels.once import computed_once
from .regions import Outlined

aten = torch.ops.aten
STREAMS = 4  # rows read side by side
WORTH_CUTTING = 300_000  # numbers; of fewer the parts cost more than they give


def stream_weights(outlined: Outlined) -> None:
    """Let every linear decide by its input's length; quantised weights are left to their own products."""
    for part in (outlined.body, outlined.head):
        if part is None or any(is_traceable_wrapper_subclass(p) for p in part.parameters()):
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
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
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
    """x [B, S, K], weights [N, K] -> [B, S, N] each; of one token in all, summed in float32 or wider.

    One token reads `compact` in the weights' place, if there is one: see `compact_weights`.
    """
    if x.dim() != 3 or x.shape[0] != 1 or x.shape[1] != 1:
        return [aten.linear.default(x, *operands) for operands in zip(weights, biases, strict=True)]
    # The loop over a narrow weight is held up by arithmetic: its input is widened before, not for every row.
    wide = x if x.dtype in (torch.float32, torch.float64) else computed_once(x.float())
    rows = [weight.shape[0] for weight in weights]
    if len(compact) > 1:
        outs: Sequence[torch.Tensor] = coded_linear(wide, *compact).split(rows, -1)
    else:
        outs = _products(wide, compact[0].split(rows) if compact else weights)
    return [
        (out if bias is None else out + bias.to(out.dtype)).to(x.dtype)
        for out, bias in zip(outs, biases, strict=True)
    ]


def _products(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Rows of equally long weights are read side by side."""
    beside, outs = Counter(weight.shape[0] for weight in weights), []
    for weight in weights:
        alike = beside[weight.shape[0]]
        parts = STREAMS // alike if weight.numel() * alike >= WORTH_CUTTING else 1
        outs.append(_product(x, weight, max(1, parts)))
    return outs


def _product(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """x [1, 1, K], weight [N, K] -> [1, 1, N]: parts of equally many rows, and the rows that are left."""
    rows = weight.shape[0] // parts
    sizes = [rows] * parts + [weight.shape[0] % parts]
    sums = [(x.unsqueeze(-2) * part.to(x.dtype)).sum(-1) for part in weight.split(sizes) if len(part)]
    return concatenate(sums) if len(sums) > 1 else sums[0]
