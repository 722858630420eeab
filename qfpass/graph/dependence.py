"""Which nodes of a decoder's graph depend on an input, such as the token ids or the positions."""

from collections.abc import Collection

import torch
from torch import fx

aten = torch.ops.aten

SIZES = frozenset({aten.sym_size.int})
# Operators that read only the shape, dtype and device of their input tensor, not its values.
SHAPE_ONLY = SIZES | {
    aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip


def text_dependent(
    graph: fx.Graph, passing_nothing_on: Collection[object], source: str = "input_ids"
) -> set[fx.Node]:
    """The nodes that depend on the placeholder named `source`, and that placeholder.

    Nodes that call an operator in `passing_nothing_on` count as independent of their inputs.
    """
    sources = {n for n in graph.nodes if n.op == "placeholder" and n.name == source}
    return dependents_of(graph, sources, passing_nothing_on)


def dependents_of(
    graph: fx.Graph, sources: Collection[fx.Node], passing_nothing_on: Collection[object]
) -> set[fx.Node]:
    """The nodes that depend on any of `sources`, and `sources` themselves.

    Nodes that call an operator in `passing_nothing_on` count as independent of their inputs.
    """
    reached = set(sources)
    for node in graph.nodes:
        if node.target not in passing_nothing_on and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached
