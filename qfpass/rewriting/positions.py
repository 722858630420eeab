"""Positions that a decoder counts itself within a call: they must go on from the session's positions."""

from collections.abc import Iterator

import torch
from torch import fx

from ..graph.dependence import SHAPE_ONLY, dependents_of, text_dependent
from ..graph.devices import device_of, handed_to
from ..graph.nodes import args_of
from ..graph.subgraph import ancestors, cut_out

aten = torch.ops.aten
PROBES = (5, 8)  # tokens of the calls for which values are computed
LARGEST_START = 2**20  # float32 holds every integer only up to 2**24


def follow_positions(module: fx.GraphModule, position: fx.Node) -> None:
    """Replace values that count the tokens of a call by `position` [B, S], in place.

    Two kinds of value count tokens: a tensor that holds 0, 1, 2, ... (or starts at another number), however
    it is computed, and the first S rows of a table.
    """
    graph = module.graph
    text = text_dependent(graph, SHAPE_ONLY)
    positioned = dependents_of(graph, {position}, ())
    candidates = [n for n in graph.nodes if n.op == "call_function" and n not in text and n not in positioned]
    counting = dict(_counting(module, candidates))
    for node in candidates:
        if node in counting and not counting.keys() & ancestors(node.all_input_nodes):
            _replace(node, _position_like(node, position, counting[node]))
        elif node.target is aten.slice.Tensor and _takes_first_rows(node):
            with graph.inserting_before(node):
                row = graph.call_function(aten.select.int, (handed_to(node.meta["val"], position), 0, 0))
                rows = graph.call_function(
                    aten.index_select.default, (args_of(node)[0], args_of(node)[1], row)
                )
            _replace(node, rows)
    graph.eliminate_dead_code()


def _counting(module: fx.GraphModule, candidates: list[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """Yield each node of `candidates` whose rows all hold first, first + 1, ..., with that first number."""
    nodes = [n for n in candidates if _is_row_of_tokens(n)]
    if not nodes:
        return
    program = cut_out(module, nodes)
    ids = next(n for n in module.graph.nodes if n.op == "placeholder").meta["val"]
    others = sum(n.op == "placeholder" for n in module.graph.nodes) - 1
    runs = [
        program(torch.zeros(2, length, dtype=ids.dtype, device=device_of(ids)), *[None] * others)
        for length in PROBES
    ]
    for node, *values in zip(nodes, *runs, strict=True):
        first = values[0].flatten()[0].item()
        if abs(first) > LARGEST_START or first != int(first):
            continue
        if all(bool((v == _arange_like(v, first)).all()) for v in values):
            yield node, int(first)


def _arange_like(like: torch.Tensor, first: float) -> torch.Tensor:
    return torch.arange(like.shape[-1], device=like.device) + first


def _is_row_of_tokens(node: fx.Node) -> bool:
    """Whether the value isn't bool and its shape can be [S], [1, S] or [B, S]."""
    value = node.meta.get("val")
    return (
        isinstance(value, torch.Tensor)
        and 1 <= value.dim() <= 2
        and value.dtype != torch.bool
        and not isinstance(value.shape[-1], int)
        and (value.dim() == 1 or value.shape[0] == 1 or not isinstance(value.shape[0], int))
    )


def _position_like(node: fx.Node, position: fx.Node, first: int) -> fx.Node:
    """A new node: `position` plus `first`, in the shape and dtype of `node`."""
    graph, value = node.graph, node.meta["val"]
    with graph.inserting_before(node):
        counted = handed_to(value, position)
        if value.dim() == 1:
            counted = graph.call_function(aten.select.int, (counted, 0, 0))
        elif isinstance(value.shape[0], int):
            counted = graph.call_function(aten.slice.Tensor, (counted, 0, 0, 1))
        if first:
            counted = graph.call_function(aten.add.Tensor, (counted, first))
        if value.dtype != torch.int64:
            counted = graph.call_function(aten.to.dtype, (counted, value.dtype))
    return counted


def _takes_first_rows(node: fx.Node) -> bool:
    """Whether the node slices the first S rows of a table that has a fixed number of rows."""
    table, dim, start = (*args_of(node), 0, None)[:3] if len(args_of(node)) < 3 else args_of(node)[:3]
    step = args_of(node)[4] if len(args_of(node)) > 4 else 1
    before, after = table.meta["val"].shape[dim], node.meta["val"].shape[dim]
    return isinstance(before, int) and not isinstance(after, int) and start in (None, 0) and step == 1


def _replace(node: fx.Node, new: fx.Node) -> None:
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, propagate_meta=False)
