"""Where a decoder's graph can be cut into layers, found by which values are still used later."""

from collections.abc import Callable, Hashable
from itertools import pairwise

import torch
from torch import fx

from ..upstream.process_groups import hand_offs

aten = torch.ops.aten
Structure = Callable[[int, int], Hashable]


def pure_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes computed from weights, constants and sizes alone; each region computes them itself."""
    pure: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "call_module", "get_attr"):
            continue
        is_size = node.target is aten.sym_size.int
        if is_size or all(n in pure or n.op == "get_attr" for n in node.all_input_nodes):
            pure.add(node)
    return pure


def choose_cuts(nodes: list[fx.Node], hidden: set[fx.Node], structure: Structure) -> list[int]:
    """Indices of the nodes after which to cut; empty if the graph can't be cut.

    There is a cut before each attention, at the last place where one hidden value alone is used later, and
    one after the last attention. What the stages of a pipeline hand on before or after them is a part of its
    own, so that no process runs a hand-off in its prologue or head that another runs elsewhere.

    `structure(a, b)` is a key for the nodes after index a up to index b, equal for parts that can share a
    module.
    """
    sites = [i for i, n in enumerate(nodes) if n.op == "call_module"]
    candidates = _single_value_indices(nodes, hidden)
    before = [max((p for p in candidates if p < site), default=None) for site in sites]
    after = [p for p in candidates if p > sites[-1]]
    if None in before or not after:
        return []
    starts = sorted({p for p in before if p is not None})
    cuts = [*starts, _last_cut(starts, after, structure)]
    handed = [nodes.index(node) for node in hand_offs(nodes[0].graph)[:-1]]  # the last gives logits
    early, late = [i for i in handed if i < sites[0]], [i for i in handed if i > cuts[-1]]
    if early:
        sent = nodes.index(nodes[early[0]].all_input_nodes[0])
        cuts[:0] = [max((p for p in candidates if p < sent), default=-1)]
    return [] if -1 in cuts else [*cuts, *late[-1:]]


def _single_value_indices(nodes: list[fx.Node], hidden: set[fx.Node]) -> list[int]:
    """Indices i where node i is the only hidden value computed up to i that is used after i."""
    order = {node: i for i, node in enumerate(nodes)}
    reach = {n: max((order[u] for u in n.users), default=-1) for n in hidden}
    candidates, alive = [], set()
    for i, node in enumerate(nodes):
        if node in hidden:
            alive.add(node)
        alive = {n for n in alive if reach[n] > i}
        if alive == {node} and _is_hidden_state(node):
            candidates.append(i)
    return candidates


def _is_hidden_state(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.is_floating_point()


def _last_cut(starts: list[int], after: list[int], structure: Structure) -> int:
    """The index that ends the last layer: where it gets the structure of an earlier one, else the first."""
    known = {structure(a, b) for a, b in pairwise(starts)}
    return next((index for index in after if structure(starts[-1], index) in known), after[0])
