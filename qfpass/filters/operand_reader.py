"""Reads a text with a captured graph and shows every attention's query and key."""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from ..attention.find import Attention
from ..upstream.process_groups import hand_offs

Show = Callable[[Attention, torch.Tensor, torch.Tensor], None]


def operand_reader(
    module: fx.GraphModule, attentions: Sequence[Attention], show: Show
) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """A function of ids and positions [B, S] that runs the graph up to its last attention.

    It calls `show(attention, query, key)` at each: query [B, Hq, S, D] and key [B, Hkv, S, D] are what the
    attention reads, positions applied. A stage of a pipeline goes on to the last hand-off of hidden values.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(module.graph, copies)
    shown = []
    for attention in attentions:
        with graph.inserting_before(copies[attention.node]):
            operands = (copies[attention.query], copies[attention.key])
            shown.append(graph.call_function(_shows(show, attention), operands))
    # What nothing else reads, such as a key that is written for us alone, stays too.
    graph.output([*shown, *hand_offs(graph)[:-1]])
    graph.eliminate_dead_code()
    return fx.Interpreter(module, graph=graph).run


def _shows(show: Show, attention: Attention) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def show_operands(query: torch.Tensor, key: torch.Tensor) -> None:
        if attention.heads_last:
            query, key = query.transpose(1, 2), key.transpose(1, 2)
        show(attention, query, key)

    return show_operands
