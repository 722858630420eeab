"""The nodes that a value is computed from, and that part of a graph as a module of its own."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from .nodes import args_of, attribute


def ancestors(targets: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that `targets` are computed from, and `targets` themselves."""
    needed, pending = set[fx.Node](), list(targets)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


def cut_out(module: fx.GraphModule, targets: Sequence[fx.Node]) -> fx.GraphModule:
    """A module that computes `targets`, nodes of `module`'s graph: (*its placeholders) -> a tuple of them."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    needed = ancestors(targets)
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[target] for target in targets))
    return fx.GraphModule(module, graph)


def integers_in(module: fx.GraphModule) -> set[int]:
    """The absolute numbers, cut to integers, in the arguments of a graph's nodes and in its short constants.

    Constants of fewer than two dimensions are read, the first 64 elements of each.
    """
    found = set[int]()
    for node in module.graph.nodes:
        found |= _integers((args_of(node), tuple(node.kwargs.values())))
        held = attribute(module, node) if node.op == "get_attr" else None
        if isinstance(held, torch.Tensor) and held.dim() < 2:
            found |= {abs(int(x)) for x in held.flatten()[:64].tolist() if math.isfinite(x)}
    return found


def _integers(args: object) -> set[int]:
    if isinstance(args, (tuple, list)):
        return set().union(*(_integers(a) for a in args)) if args else set()
    if isinstance(args, (int, float)) and not isinstance(args, bool) and abs(args) < 2**31:
        return {abs(int(args))}
    return set()
