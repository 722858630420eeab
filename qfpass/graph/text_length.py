"""The length of the whole text: what a forward does by it, where a session reads a text in parts.

A decoder may scale by the length, or take other rotations past some position: it sees a whole text in one
call. A rewritten graph sees a chunk, so the position of the call's last token is an input of its own, which
takes the place of the chunk's largest position. `other_lengths` refuses what depends on the length otherwise.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx

from .by_place import PlaceProgram, by_place_alone
from .dependence import made_from
from .positions import LARGEST_START

aten = torch.ops.aten
PROBES = ((5, 0), (8, 0), (8, 3))  # tokens, and the first one's position


class _Length(NamedTuple):
    """A node that holds the largest position, or the number of tokens, plus `offset`."""

    node: fx.Node
    counts_tokens: bool
    offset: int


def follow_text_length(module: fx.GraphModule, position: fx.Node, call_end: fx.Node) -> None:
    """Let tensors that hold the largest position or the number of tokens of a chunk hold the whole call's.

    `position` [B, S] is the chunk's; `call_end` [] is the position of the last token of all chunks of the
    call, or any lower number where the chunk is the call.
    """
    lengths = list(_lengths(module))
    nodes = {length.node for length in lengths}
    for node, counts_tokens, offset in lengths:
        if nodes & made_from(node.all_input_nodes):
            continue
        with module.graph.inserting_before(node.next):
            call = module.graph.call_function
            end, more = call_end, offset
            if counts_tokens:
                largest = call(aten.amax.default, (position,))
                end, more = call(aten.maximum.default, (largest, call_end)), offset + 1
            if more:
                end = call(aten.add.Tensor, (end, more))
            end = call(aten.to.dtype, (end, node.meta["val"].dtype))
            whole = call(aten.maximum.default, (node, end))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, own=whole: user is not own)


def _lengths(module: fx.GraphModule) -> Iterator[_Length]:
    """In graph order."""
    places = by_place_alone(module.graph)
    nodes = [node for node in module.graph.nodes if node in places and _is_number(node)]
    if not nodes:
        return
    program = PlaceProgram(module, nodes, places)
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


def _is_number(node: fx.Node) -> bool:
    """Whether it is a tensor of one number, or of one a row."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return (
        not value.is_complex()
        and all(isinstance(n, int) and n == 1 for n in value.shape[1:])
        and (value.dim() == 0 or value.shape[0] == 1 or not isinstance(value.shape[0], int))
    )
