"""Positions that a decoder makes itself: what counts the tokens of a call must count those of the text."""

from collections.abc import Iterator

import torch
from torch import fx

from .dependence import SHAPE_ONLY, cut_out, dependent, made_from, text_dependent

aten = torch.ops.aten
PROBES = (5, 8)  # lengths in tokens
LARGEST_START = 2**20  # past 2**24 a float32 doesn't count


def follow_positions(module: fx.GraphModule, position: fx.Node) -> None:
    """Let a graph place tokens by `position` [B, S] wherever it places them by their number in the call.

    Two things do: a tensor that holds 0, 1, 2, ... (or starts at another number), however it was made,
    and the first S rows of a table.
    """
    graph = module.graph
    text = text_dependent(graph, SHAPE_ONLY)
    placed = dependent(graph, {position}, ())
    free = [n for n in graph.nodes if n.op == "call_function" and n not in text and n not in placed]
    counting = dict(_counting(module, free))
    for node in free:
        if node in counting and not counting.keys() & made_from(node.all_input_nodes):
            _replace(node, _as_counted(node, position, counting[node]))
        elif node.target is aten.slice.Tensor and _takes_first_rows(node):
            with graph.inserting_before(node):
                row = graph.call_function(aten.select.int, (position, 0, 0))
                rows = graph.call_function(aten.index_select.default, (node.args[0], node.args[1], row))
            _replace(node, rows)
    graph.eliminate_dead_code()


def _counting(module: fx.GraphModule, free: list[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """The nodes among `free` that hold first, first + 1, ... for each row, with that first number."""
    nodes = [n for n in free if _is_row_of_tokens(n)]
    if not nodes:
        return
    program = cut_out(module, nodes)
    ids = next(n for n in module.graph.nodes if n.op == "placeholder").meta["val"]
    others = sum(n.op == "placeholder" for n in module.graph.nodes) - 1
    runs = [
        program(torch.zeros(2, length, dtype=ids.dtype, device=ids.device), *[None] * others)
        for length in PROBES
    ]
    for node, *values in zip(nodes, *runs, strict=True):
        first = values[0].flatten()[0].item()
        if abs(first) > LARGEST_START or first != int(first):
            continue
        if all(bool((v == _count(v, first)).all()) for v in values):
            yield node, int(first)


def _count(like: torch.Tensor, first: float) -> torch.Tensor:
    return torch.arange(like.shape[-1], device=like.device) + first


def _is_row_of_tokens(node: fx.Node) -> bool:
    """Whether its shape is [S], [1, S] or [B, S] as far as can be told."""
    value = node.meta.get("val")
    return (
        isinstance(value, torch.Tensor)
        and 1 <= value.dim() <= 2
        and value.dtype != torch.bool
        and not isinstance(value.shape[-1], int)
        and (value.dim() == 1 or value.shape[0] == 1 or not isinstance(value.shape[0], int))
    )


def _as_counted(node: fx.Node, position: fx.Node, first: int) -> fx.Node:
    """`position` in the shape and dtype of a node that counts from `first`."""
    graph, value = node.graph, node.meta["val"]
    with graph.inserting_before(node):
        counted = position
        if value.dim() == 1:
            counted = graph.call_function(aten.select.int, (position, 0, 0))
        elif isinstance(value.shape[0], int):
            counted = graph.call_function(aten.slice.Tensor, (position, 0, 0, 1))
        if first:
            counted = graph.call_function(aten.add.Tensor, (counted, first))
        if value.dtype != torch.int64:
            counted = graph.call_function(aten.to.dtype, (counted, value.dtype))
    return counted


def _takes_first_rows(node: fx.Node) -> bool:
    """Whether it slices the first S of a fixed number of rows."""
    table, dim, start = (*node.args, 0, None)[:3] if len(node.args) < 3 else node.args[:3]
    step = node.args[4] if len(node.args) > 4 else 1
    before, after = table.meta["val"].shape[dim], node.meta["val"].shape[dim]
    return isinstance(before, int) and not isinstance(after, int) and start in (None, 0) and step == 1


def _replace(node: fx.Node, new: fx.Node) -> None:
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, propagate_meta=False)
