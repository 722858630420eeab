"""Values that depend on the length of the whole text, in a graph that sees one chunk of it.

A forward sees a whole text in one call. It may scale by the length, or use other rotations past some
position. A rewritten graph sees a chunk, so the position of the call's last token is an input of its own,
which replaces the chunk's largest position. `proof.length_dependence` refuses the other cases.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx

from ..graph.devices import handed_to
from ..graph.position_program import PositionProgram, position_only_nodes
from ..graph.subgraph import ancestors
from .positions import LARGEST_START

aten = torch.ops.aten
PROBES = ((5, 0), (8, 0), (8, 3))  # chunks that are tried: tokens, position of the first


class _Length(NamedTuple):
    """A node that holds a chunk's number of tokens (`counts_tokens`) or largest position, plus `offset`."""

    node: fx.Node
    counts_tokens: bool
    offset: int


def follow_text_length(module: fx.GraphModule, position: fx.Node, call_end: fx.Node) -> None:
    """Make values that hold a chunk's largest position or number of tokens hold the whole call's, in place.

    `position` [B, S] are the chunk's positions. `call_end` [] is the position of the last token of the call,
    or any lower number where the chunk is the whole call.
    """
    lengths = list(_lengths(module))
    nodes = {length.node for length in lengths}
    for node, counts_tokens, offset in lengths:
        if nodes & ancestors(node.all_input_nodes):  # it follows the length that it is made from
            continue
        with module.graph.inserting_before(node.next):
            call = module.graph.call_function
            end, more = handed_to(node.meta["val"], call_end), offset
            if counts_tokens:
                largest = call(aten.amax.default, (handed_to(node.meta["val"], position),))
                end, more = call(aten.maximum.default, (largest, end)), offset + 1
            if more:
                end = call(aten.add.Tensor, (end, more))
            end = call(aten.to.dtype, (end, node.meta["val"].dtype))
            whole = call(aten.maximum.default, (node, end))
        whole.meta = dict(node.meta)
        for user in [user for user in node.users if user is not whole]:
            user.replace_input_with(node, whole)


def _lengths(module: fx.GraphModule) -> Iterator[_Length]:
    """Yield the nodes that hold a length or a largest position for all `PROBES`, in graph order."""
    places = position_only_nodes(module.graph)
    nodes = [node for node in module.graph.nodes if node in places and _is_one_number_a_row(node)]
    if not nodes:
        return
    program = PositionProgram(module, nodes, places)
    runs = [program.values(tokens, first, call_end=0) for tokens, first in PROBES]
    for node, *values in zip(nodes, *runs, strict=True):
        if any(value.numel() != 1 for value in values):
            continue
        numbers = [value.item() for value in values]
        for counts_tokens in (False, True):
            offsets = {
                number - (tokens if counts_tokens else first + tokens - 1)
                for number, (tokens, first) in zip(numbers, PROBES, strict=True)
            }
            offset = offsets.pop()
            if not offsets and abs(offset) <= LARGEST_START and offset == int(offset):
                yield _Length(node, counts_tokens, int(offset))


def _is_one_number_a_row(node: fx.Node) -> bool:
    """Whether the value is a tensor of one number, or of one number a row."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return (
        not value.is_complex()
        and all(isinstance(n, int) and n == 1 for n in value.shape[1:])
        and (value.dim() == 0 or value.shape[0] == 1 or not isinstance(value.shape[0], int))
    )
