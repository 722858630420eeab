"""Outline the repeated layers of a decoder as regions, so that each kind of layer is compiled once.

The graph is cut where exactly one hidden value is used later: once before every attention and once after the
last. A region lies between two cuts. Regions of equal structure share one module, which is called with each
layer's weights. What follows the last cut is the head, which works token by token.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from ..graph.dependence import SIZES, dependents_of
from ..graph.nodes import args_of
from ..upstream.modules import parts_of
from .cuts import choose_cuts, pure_nodes
from .packed_copy import PackedCopy

aten = torch.ops.aten


@dataclass(frozen=True)
class Outlined:
    """A decoder as a body, which calls regions, and a head.

    Attributes:
        body: (input_ids [B, S], position_ids [B, S], *`StepInputs`) -> hidden [B, S, E].
        head: hidden [B, T, E] -> logits [B, T, V]; None if the graph isn't cut: body then returns logits.
        kinds: the number of different regions.
        regions: the number of regions in all.
        packed: packed copies of quantised weights, which body or head holds.
    """

    body: fx.GraphModule
    head: fx.GraphModule | None
    kinds: int
    regions: int
    packed: tuple[PackedCopy, ...] = ()


@dataclass(frozen=True)
class _Piece:
    """A part of a decoder as a graph of its own.

    Attributes:
        externals: the decoder's nodes that the graph's inputs stand for, in order.
        modules: the attention modules that the graph calls, by name.
        structure: equal for pieces that can share a module.
    """

    graph: fx.Graph
    externals: list[fx.Node]
    modules: dict[str, nn.Module]
    structure: Hashable


def outline(module: fx.GraphModule) -> Outlined:
    """A rewritten decoder cut into a body that calls shared regions, and a head.

    Its first input is the text: ids, or embeddings in their place.
    """
    if any(parts_of(p) for p in module.parameters()):
        # Dynamo must unwrap a quantised weight, a subclass made of several tensors, where each layer uses it:
        # that takes one graph.
        return uncut(module)
    text = next(node for node in module.graph.nodes if node.op == "placeholder")
    hidden = dependents_of(module.graph, {text}, SIZES)
    pure = pure_nodes(module.graph)
    nodes = list(module.graph.nodes)

    @cache  # called for candidates of cuts, and again for the cuts that are chosen
    def piece(a: int, b: int) -> _Piece:
        return _extract(module, nodes[a + 1 : b + 1], nodes[a], nodes[b], hidden, pure)

    cuts = choose_cuts(nodes, hidden, lambda a, b: piece(a, b).structure)
    if len(cuts) < 2 or _reads_sizes_after(nodes, hidden, cuts[0]):
        return uncut(module)
    pieces = [piece(a, b) for a, b in pairwise(cuts)]
    head = _extract(module, nodes[cuts[-1] + 1 :], nodes[cuts[-1]], None, hidden, pure)
    separable = all(n is nodes[cuts[-1]] or n.op == "get_attr" for n in head.externals)
    body, kinds = _build_body(module, nodes, cuts, pieces, hidden)
    if not separable:
        return uncut(module)
    return Outlined(body, _build_head(module, head), kinds, len(pieces))


def uncut(module: fx.GraphModule) -> Outlined:
    """A decoder as one body that gives logits."""
    return Outlined(module, None, kinds=1, regions=1)


def _reads_sizes_after(nodes: list[fx.Node], hidden: set[fx.Node], start: int) -> bool:
    """Whether a size is read from a hidden value after index `start`; regions would have to return it."""
    later = hidden.intersection(nodes[start + 1 :])
    return any(node not in hidden and later.intersection(node.all_input_nodes) for node in nodes)


def _extract(
    module: fx.GraphModule,
    segment: list[fx.Node],
    start: fx.Node,
    end: fx.Node | None,
    hidden: set[fx.Node],
    pure: set[fx.Node],
) -> _Piece:
    """The piece with the hidden nodes of `segment`; its inputs are numbered in order of use.

    It starts from the value of node `start` and gives that of `end`; if None, the decoder's output.
    """
    graph, copies, externals = fx.Graph(), {}, [start]
    copies[start] = graph.placeholder("input_0")
    copies[start].meta = {"val": start.meta.get("val")}
    modules: dict[str, nn.Module] = {}
    trace: list[Any] = [_signature(start)]

    def operand_of(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if node in pure:
            return copy_of(node)
        last_input = copies[externals[-1]]
        externals.append(node)
        with graph.inserting_after(last_input):
            copies[node] = graph.placeholder(f"input_{len(externals) - 1}")
        trace.append(("external", _signature(node)))
        return copies[node]

    def copy_of(node: fx.Node) -> fx.Node:
        if node.target is aten.sym_size.int:  # of the ids [B, S]; the hidden state [B, S, E] has it too
            made = graph.call_function(aten.sym_size.int, (copies[start], args_of(node)[1]))
        else:
            args = fx.map_arg((args_of(node), node.kwargs), operand_of)
            target: Any = node.target
            if node.op == "call_module":
                target = f"attention_{len(modules)}"
                modules[target] = module.get_submodule(str(node.target))
            made = graph.create_node(node.op, target, *args)
        made.meta = dict(node.meta)
        copies[node] = made
        trace.append(_call_signature(made, modules, graph))
        return made

    for node in segment:
        if node in hidden and node.op != "output":
            copy_of(node)
    last = args_of(segment[-1])[0] if end is None else end
    graph.output(copies[last])
    return _Piece(graph, externals, modules, tuple(trace))


def _signature(node: fx.Node) -> Hashable:
    value = node.meta.get("val")
    if node.op == "get_attr" and value is None:
        return ("weight",)
    if isinstance(value, torch.Tensor):
        return (str(tuple(value.shape)), str(value.dtype), str(value.device))
    return str(value)


def _call_signature(node: fx.Node, modules: dict[str, nn.Module], graph: fx.Graph) -> Hashable:
    target = modules[str(node.target)].sharing_key if node.op == "call_module" else str(node.target)
    return (node.op, target, str((args_of(node), node.kwargs)), _signature(node))


def _build_body(
    module: fx.GraphModule,
    nodes: list[fx.Node],
    cuts: list[int],
    pieces: list[_Piece],
    hidden: set[fx.Node],
) -> tuple[fx.GraphModule, int]:
    """The body, and the number of different regions that it calls."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(nodes):
        is_prologue = node.op != "output" and (node not in hidden or i <= cuts[0])
        if is_prologue:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    regions: dict[Hashable, str] = {}
    current = copies[nodes[cuts[0]]]
    submodules: dict[str, nn.Module] = {}
    for cut, piece in zip(cuts[1:], pieces, strict=True):
        if piece.structure not in regions:
            name = regions[piece.structure] = f"region_{len(regions)}"
            piece.graph.lint()
            submodules[name] = fx.GraphModule(piece.modules, piece.graph)
        operands = (current, *(copies[n] for n in piece.externals[1:]))
        current = graph.call_module(regions[piece.structure], operands)
        current.meta = dict(nodes[cut].meta)
        copies[nodes[cut]] = current
    graph.output(current)
    body = fx.GraphModule(_Root(module, submodules), graph)
    body.graph.eliminate_dead_code()
    body.recompile()
    return body, len(regions)


class _Root(nn.Module):
    """A module tree that holds a decoder's own modules and tensors, and the regions beside them."""

    def __init__(self, module: nn.Module, submodules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, child)
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not hasattr(self, name):
                setattr(self, name, value)
        for name, region in submodules.items():
            self.add_module(name, region)


def _build_head(module: fx.GraphModule, piece: _Piece) -> fx.GraphModule:
    """The head, which holds its weights: hidden [B, T, E] of any tokens -> logits [B, T, V]."""
    graph, copies = fx.Graph(), {}
    inputs = [n for n in piece.graph.nodes if n.op == "placeholder"]
    copies[inputs[0]] = graph.placeholder("hidden")
    copies[inputs[0]].meta = dict(inputs[0].meta)
    for old, external in zip(inputs[1:], piece.externals[1:], strict=True):
        copies[old] = graph.get_attr(str(external.target))
    output = graph.graph_copy(piece.graph, copies)
    graph.output(output)
    return fx.GraphModule(module, graph)
