"""Cuts: where a decoder's graph can be parted into layers, found by which values are alive."""

from collections.abc import Callable, Hashable
from itertools import pairwise

import torch
from torch import fx

aten = torch.ops.aten
Structure = Callable[[int, int], Hashable]


def pure_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes computed from weights, constants and sizes alone: every region makes its own."""
    pure: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "call_module", "get_attr"):
            continue
        is_size = node.target is aten.sym_size.int
        if is_size or all(n in pure or n.op == "get_attr" for n in node.all_input_nodes):
            pure.add(node)
    return pure


def choose_cuts(nodes: list[fx.Node], hidden: set[fx.Node], structure: Structure) -> list[int]:
    """Indices of nodes to cut after: the last single-value place before each attention, one at the end.

    `structure(a, b)` tells the structure of what lies after node a, up to node b. Empty if no cut will do.
    """
    sites = [i for i, n in enumerate(nodes) if n.op == "call_module"]
    places = _single_value_places(nodes, hidden)
    before = [max((p for p in places if p < site), default=None) for site in sites]
    after = [p for p in places if p > sites[-1]]
    if None in before or not after:
        return []
    starts = sorted({p for p in before if p is not None})
    return [*starts, _last_cut(starts, after, structure)]


def _single_value_places(nodes: list[fx.Node], hidden: set[fx.Node]) -> list[int]:
    """Indices i where the only hidden value made up to i and used later is node i itself."""
    order = {node: i for i, node in enumerate(nodes)}
    reach = {n: max((order[u] for u in n.users), default=-1) for n in hidden}
    places, alive = [], set()
    for i, node in enumerate(nodes):
        if node in hidden:
            alive.add(node)
        alive = {n for n in alive if reach[n] > i}
        if alive == {node} and _is_hidden_state(node):
            places.append(i)
    return places


def _is_hidden_state(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _last_cut(starts: list[int], after: list[int], structure: Structure) -> int:
    """The end of the last layer: where it has the structure of an earlier one, else the first place."""
    known = {structure(a, b) for a, b in pairwise(starts)}
    return next((place for place in after if structure(starts[-1], place) in known), after[0])
