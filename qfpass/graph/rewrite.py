"""Rewrite: each attention to work on its layer's store, which becomes an input of the graph."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..store.reading import Reading
from ..store.ring import RingAttention, RingRule
from ..store.slot_attention import SlotAttention
from ..store.slots import SlotRule
from .attention import Attention
from .capture import Captured
from .positions import follow_positions
from .text_length import follow_text_length
from .tracing import read_rather_than_run

aten = torch.ops.aten
Rule = SlotRule | RingRule
REACH = ("seen", "lengths", "recent", "call_end")


@dataclass(frozen=True)
class Site:
    """An attention with how its keys are kept and how they are read."""

    attention: Attention
    rule: Rule
    reading: Reading

    @property
    def is_ring(self) -> bool:
        return isinstance(self.rule, RingRule)


def rewrite(captured: Captured, sites: Sequence[Site]) -> fx.GraphModule:
    """The decoder on stores.

    (input_ids, position_ids, *`REACH`, *held, *a site: filters?, slot?, store) -> logits.

    `seen` and `held` are any tensors whose last sizes count the tokens in reach (with the new one if a single
    token is read) of layers that keep all they see and of bounded ones, one for each of `bounded_shares`;
    `lengths` [B] counts them row by row, None where rows are alike; `recent`, a tensor [], is how many
    newest tokens bounded layers protect; `call_end`, a tensor [], is explained by `follow_text_length`. Every
    site takes its filters [Hkv, P] if its rule needs some, the slot [B, Hkv, 1] that a single token takes if
    it is bounded, then its store's tensors, which are changed in place. Parameters stay the model's own;
    `captured` is left as it was.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(captured.module.graph, copies)
    graph.output(output)
    module = read_rather_than_run(captured.module, graph, captured.lean)
    position = next(n for n in graph.nodes if n.op == "placeholder" and n.name == "position_ids")
    last, reach = position, dict[str, fx.Node]()
    held = [f"held_{i}" for i in range(len(bounded_shares(sites)))]
    for name in (*REACH, *held):
        last = reach[name] = _add_input(graph, last, name)
    held_of = dict(zip(bounded_shares(sites), held, strict=True))
    for site in sites:
        inputs = dict[str, fx.Node]()
        for name in _input_names(site):
            last = inputs[name] = _add_input(graph, last, f"{name}_{site.attention.index}")
        visible = reach[held_of[site.rule.share] if site.rule.is_bounded else "seen"]
        _replace(module, site, copies, position, reach, visible, inputs)
    graph.eliminate_dead_code()
    follow_positions(module, position)
    follow_text_length(module, position, reach["call_end"])
    graph.lint()
    module.recompile()
    return module


def bounded_shares(sites: Sequence[Site]) -> list[float]:
    """The different shares of slots that bounded layers have, ascending."""
    return sorted({site.rule.share for site in sites if site.rule.is_bounded})


def _input_names(site: Site) -> tuple[str, ...]:
    filters = ("filters",) if site.rule.needs_filters else ()
    slot = ("slot",) if site.rule.is_bounded else ()
    return filters + slot + site.rule.store_type._fields


def _add_input(graph: fx.Graph, after: fx.Node, name: str) -> fx.Node:
    with graph.inserting_after(after):
        return graph.placeholder(name)


def _replace(
    module: fx.GraphModule,
    site: Site,
    copies: dict[fx.Node, fx.Node],
    position: fx.Node,
    reach: dict[str, fx.Node],
    visible: fx.Node,
    inputs: dict[str, fx.Node],
) -> None:
    attention = site.attention
    layer = RingAttention if site.is_ring else SlotAttention
    name = f"attention_{attention.index}"
    module.add_submodule(name, layer(site.reading, site.rule))
    store = (inputs[field] for field in site.rule.store_type._fields)
    old, graph = copies[attention.node], module.graph
    with graph.inserting_before(old):
        operands = [copies[n] for n in (attention.query, attention.key, attention.value)]
        if attention.heads_last:
            operands = [graph.call_function(aten.transpose.int, (n, 1, 2)) for n in operands]
        recent = reach["recent"] if site.rule.is_bounded else None
        sink = None if attention.sink is None else _flat(graph, copies[attention.sink])
        arguments = (*operands, position, visible, reach["lengths"], recent)
        arguments += (inputs.get("filters"), sink, inputs.get("slot"), *store)
        new = graph.call_module(name, arguments)
        new.meta = copy.copy(old.meta)
        result = new
        if attention.heads_last:
            result = graph.call_function(aten.transpose.int, (new, 1, 2))
    use_instead(old, result, is_tuple=attention.heads_last)


def _flat(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A learned number a head, [Hq], in whatever shape it is kept."""
    value = node.meta["val"]
    if value.dim() == 1:
        return node
    flat = graph.call_function(aten.reshape.default, (node, [-1]))
    flat.meta["val"] = value.reshape(-1)
    return flat


def use_instead(old: fx.Node, new: fx.Node, is_tuple: bool) -> None:
    """Replace the attention's output, the first of a tuple for flash_attn, by `new`."""
    if not is_tuple:
        old.replace_all_uses_with(new)
    for user in list(old.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(new)
        user.graph.erase_node(user)
    old.graph.erase_node(old)
