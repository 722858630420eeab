"""A body taken apart: what is computed before the layers, and the regions with their operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import fx

from .regions import Outlined


@dataclass(frozen=True)
class Layer:
    """A call of the region `kind`; its operands are hidden [B, S, E] and then the values of these numbers."""

    kind: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Pieces:
    """What runs in turn: prologue(*inputs) -> (hidden, *made), then the layers.

    Attributes:
        weights: values that layers read where they lie. The values that they number are the inputs of the
            body, then these, then what the prologue made but for hidden.
        with_length: dimensions that are as long as the text, of hidden and what else the prologue makes.
    """

    prologue: fx.GraphModule
    kinds: dict[str, fx.GraphModule]
    layers: tuple[Layer, ...]
    weights: tuple[torch.Tensor, ...]
    with_length: tuple[tuple[int, ...], ...]


def take_apart(outlined: Outlined) -> Pieces:
    """The pieces of a body that calls regions."""
    body = outlined.body
    nodes = list(body.graph.nodes)
    calls = [node for node in nodes if node.op == "call_module"]
    used = list(dict.fromkeys(operand for call in calls for operand in call.args[1:]))
    inputs = [node for node in nodes if node.op == "placeholder"]
    weights = [node for node in used if node.op == "get_attr"]
    made = [node for node in used if node.op not in ("placeholder", "get_attr")]
    number = {node: i for i, node in enumerate([*inputs, *weights, *made])}
    layers = tuple(Layer(str(c.target), tuple(number[operand] for operand in c.args[1:])) for c in calls)
    results = [calls[0].args[0], *made]
    length = inputs[0].meta["val"].shape[1]
    return Pieces(
        prologue=_prologue(body, nodes, results),
        kinds={layer.kind: body.get_submodule(layer.kind) for layer in layers},
        layers=layers,
        weights=tuple(attrgetter(str(node.target))(body) for node in weights),
        with_length=tuple(_dims_of(node, length) for node in results),
    )


def _prologue(body: fx.GraphModule, nodes: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node.op not in ("call_module", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(body, graph)


def _dims_of(node: fx.Node, size: torch.SymInt) -> tuple[int, ...]:
    shape = node.meta["val"].shape
    return tuple(i for i, n in enumerate(shape) if isinstance(n, torch.SymInt) and str(n) == str(size))
