"""Runs a captured decoder with a given function in place of each attention."""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from ..attention.find import Attention
from ..graph.captured import Captured
from ..rewriting.positions import follow_positions
from ..rewriting.rewrite import replace_attention_node

aten = torch.ops.aten
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class AttendWith:
    """A captured decoder whose attentions call `attend(index, query, key, value)`.

    query [1, Hq, S, D], key [1, Hkv, S, D], value [1, Hkv, S, Dv] -> [1, Hq, S, Dv].
    """

    def __init__(self, captured: Captured, attentions: Sequence[Attention]) -> None:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(captured.module.graph, copies))
        self._module = fx.GraphModule(captured.module, graph)
        position = next(n for n in graph.nodes if n.op == "placeholder" and n.name == "position_ids")
        with graph.inserting_after(position):
            attend = graph.placeholder("attend")
        for attention in attentions:
            _replace(graph, copies, attention, attend)
        graph.eliminate_dead_code()
        follow_positions(self._module, position)
        self._module.recompile()
        self._keys = _until_last_attention(self._module)

    def read_keys(self, ids: torch.Tensor, position: torch.Tensor, attend: Attend) -> None:
        """Run ids [S] at positions [S] up to the last call of `attend`; returns nothing."""
        self._keys(ids[None], position[None], attend)

    def read(self, ids: torch.Tensor, position: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Logits [S, V] of ids [S] at positions [S], with `attend` as the attention."""
        return self._module(ids[None], position[None], attend)[0]


def _attend(
    attend: Attend, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    return attend(index, query, key, value)


def _until_last_attention(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that ends at its last attention."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(module.graph, copies)
    last = [node for node in module.graph.nodes if node.target is _attend][-1]
    graph.output(copies[last])
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _replace(graph: fx.Graph, copies: dict[fx.Node, fx.Node], attention: Attention, attend: fx.Node) -> None:
    old = copies[attention.node]
    with graph.inserting_before(old):
        operands = [copies[n] for n in (attention.query, attention.key, attention.value)]
        if attention.heads_last:
            operands = [graph.call_function(aten.transpose.int, (n, 1, 2)) for n in operands]
        new = graph.call_function(_attend, (attend, attention.index, *operands))
        if attention.heads_last:
            new = graph.call_function(aten.transpose.int, (new, 1, 2))
    replace_attention_node(old, new, is_tuple=attention.heads_last)
