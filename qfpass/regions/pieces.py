"""A body taken apart into a prologue, which runs before the layers, and the layers with their operands."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..graph.nodes import args_of, attribute, graph_module
from .outline import Outlined


@dataclass(frozen=True)
class RegionCall:
    """A call of the region `kind` with hidden [B, S, E] and the values of these numbers; see `Pieces`."""

    kind: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Pieces:
    """The parts of a body in the order in which they run.

    Layers refer to values by number: first come the body's inputs, then `weights`, then what the prologue
    gives after hidden.

    Attributes:
        prologue: (*the body's inputs) -> (hidden [B, S, E], *other values that layers read).
        kinds: the regions, by name.
        layers: the calls of regions, in order.
        weights: the weights and constants that layers read.
        with_length: for each value that the prologue gives, the dimensions of size S.
    """

    prologue: fx.GraphModule
    kinds: dict[str, fx.GraphModule]
    layers: tuple[RegionCall, ...]
    weights: tuple[torch.Tensor, ...]
    with_length: tuple[tuple[int, ...], ...]


def take_apart(outlined: Outlined) -> Pieces:
    """The prologue and layers of a body that calls regions."""
    body = outlined.body
    nodes = list(body.graph.nodes)
    calls = [node for node in nodes if node.op == "call_module"]
    used = list(dict.fromkeys(operand for call in calls for operand in args_of(call)[1:]))
    inputs = [node for node in nodes if node.op == "placeholder"]
    weights = [node for node in used if node.op == "get_attr"]
    made = [node for node in used if node.op not in ("placeholder", "get_attr")]
    number = {node: i for i, node in enumerate([*inputs, *weights, *made])}
    layers = tuple(
        RegionCall(str(c.target), tuple(number[operand] for operand in args_of(c)[1:])) for c in calls
    )
    results = [args_of(calls[0])[0], *made]
    length = inputs[0].meta["val"].shape[1]
    return Pieces(
        prologue=_prologue(body, nodes, results),
        kinds={layer.kind: graph_module(body, layer.kind) for layer in layers},
        layers=layers,
        weights=tuple(attribute(body, node) for node in weights),
        with_length=tuple(dims_of_size(node, length) for node in results),
    )


def _prologue(body: fx.GraphModule, nodes: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node.op not in ("call_module", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(body, graph)


def dims_of_size(node: fx.Node, size: torch.SymInt) -> tuple[int, ...]:
    """The dimensions of a traced value that have this size."""
    value = node.meta.get("val")  # what was handed over from an input that isn't traced has none
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(i for i, n in enumerate(shape) if isinstance(n, torch.SymInt) and str(n) == str(size))
