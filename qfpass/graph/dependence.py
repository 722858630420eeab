"""Which values of a decoder's graph depend on the text, or on positions."""

from collections.abc import Collection, Iterable

import torch
from torch import fx

aten = torch.ops.aten

SIZES = frozenset({aten.sym_size.int})
# Operations that take nothing but a tensor's shape, dtype and device from it.
SHAPE_ONLY = SIZES | {
    aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip


def text_dependent(
    graph: fx.Graph, passing_nothing_on: Collection[object], source: str = "input_ids"
) -> set[fx.Node]:
    """Nodes that a value of `source` reaches, other than through operations `passing_nothing_on`."""
    sources = {n for n in graph.nodes if n.op == "placeholder" and n.name == source}
    return dependent(graph, sources, passing_nothing_on)


def dependent(
    graph: fx.Graph, sources: Collection[fx.Node], passing_nothing_on: Collection[object]
) -> set[fx.Node]:
    """Nodes that a value of `sources` reaches, those included."""
    reached = set(sources)
    for node in graph.nodes:
        if node.target not in passing_nothing_on and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def made_from(targets: Iterable[fx.Node]) -> set[fx.Node]:
    """All that `targets` are made from, and themselves."""
    needed, pending = set[fx.Node](), list(targets)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed
