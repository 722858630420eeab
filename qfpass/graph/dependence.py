"""Which values of a decoder's graph depend on the text, or on positions."""

import math
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any

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


def cut_out(module: fx.GraphModule, targets: Sequence[fx.Node]) -> fx.GraphModule:
    """What makes `targets`, nodes of `module`'s graph, as (*its placeholders) -> a tuple of them."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    needed = made_from(targets)
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[target] for target in targets))
    return fx.GraphModule(module, graph)


def whole_numbers(module: fx.GraphModule) -> set[int]:
    """The whole numbers, by magnitude, that a graph is written with or that short constants of it hold."""
    found = set[int]()
    for node in module.graph.nodes:
        found |= _integers((node.args, tuple(node.kwargs.values())))
        held = attribute(module, node) if node.op == "get_attr" else None
        if isinstance(held, torch.Tensor) and held.dim() < 2:
            found |= {abs(int(x)) for x in held.flatten()[:64].tolist() if math.isfinite(x)}
    return found


def attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a get_attr node of `module` reads."""
    return attrgetter(str(node.target))(module)


def _integers(args: object) -> set[int]:
    if isinstance(args, (tuple, list)):
        return set().union(*(_integers(a) for a in args)) if args else set()
    if isinstance(args, (int, float)) and not isinstance(args, bool) and abs(args) < 2**31:
        return {abs(int(args))}
    return set()
