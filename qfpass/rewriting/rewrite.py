"""Replace each attention by one that works on its layer's store, which becomes an input of the graph."""

import copy
from collections.abc import Sequence

import torch
from torch import fx

from ..graph.captured import Captured
from ..graph.devices import HandOvers, write_hand_overs
from ..graph.nodes import args_of
from ..store.layer_inputs import LayerInputs
from ..store.ring import RingRule
from ..store.ring_attention import RingAttention
from ..store.slot_attention import SlotAttention
from ..store.store_kind import fields_of
from .positions import follow_positions
from .site import Site, layers_of
from .step_inputs import StepInputs
from .text_length import follow_text_length

aten = torch.ops.aten


def rewrite(captured: Captured, sites: Sequence[Site]) -> fx.GraphModule:
    """The decoder on stores: (input_ids [B, S], position_ids [B, S], *`StepInputs`) -> logits [B, S, V].

    The new module shares the model's parameters. `captured` isn't changed.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(captured.module.graph, copies))
    write_hand_overs(graph)
    module = fx.GraphModule(captured.module, graph)
    position = next(n for n in graph.nodes if n.op == "placeholder" and n.name == "position_ids")
    step_inputs, inputs, last = StepInputs(layers_of(sites)), dict[str, fx.Node](), position
    for name in step_inputs.names:
        with graph.inserting_after(last):
            last = inputs[name] = graph.placeholder(name)
    hand_over = HandOvers(graph, captured.device)
    for site in sites:
        _replace(module, site, copies, position, step_inputs, inputs, hand_over)
    graph.eliminate_dead_code()
    follow_positions(module, position)
    follow_text_length(module, position, inputs["call_end"])
    graph.lint()
    module.recompile()
    return module


def _replace(
    module: fx.GraphModule,
    site: Site,
    copies: dict[fx.Node, fx.Node],
    position: fx.Node,
    step_inputs: StepInputs,
    inputs: dict[str, fx.Node],
    hand_over: HandOvers,
) -> None:
    """Replace a site's attention by a call of `RingAttention` or `SlotAttention`."""
    attention, device = site.attention, site.attention.device
    name = f"attention_{attention.index}"
    module.add_submodule(name, _attention_module(site))
    own = {field: inputs[name] for field, name in step_inputs.names_of(site.layer).items()}
    old, graph = copies[attention.node], module.graph
    with graph.inserting_before(old):
        operands = [copies[n] for n in (attention.query, attention.key, attention.value)]
        if attention.heads_last:
            operands = [graph.call_function(aten.transpose.int, (n, 1, 2)) for n in operands]
        given = LayerInputs(
            position=hand_over(position, device),
            visible=hand_over(inputs[step_inputs.visible_name(site.layer)], device, sized=True),
            lengths=hand_over(inputs["lengths"], device),
            recent=hand_over(inputs["recent"], device) if site.rule.is_bounded else None,
            filters=own.get("filters"),
            sink=None if attention.sink is None else _flat(graph, copies[attention.sink]),
            smoothing=_held(module, f"smoothing_{attention.index}", site.smoothing),
            slot=own.get("slot"),
        )
        store = [own[field] for field in fields_of(site.rule.store_type)]
        new = graph.call_module(name, (*operands, *given, *store))
        new.meta = copy.copy(old.meta)
        result = new
        if attention.heads_last:
            result = graph.call_function(aten.transpose.int, (new, 1, 2))
    replace_attention_node(old, result, is_tuple=attention.heads_last)


def _attention_module(site: Site) -> RingAttention | SlotAttention:
    if isinstance(site.rule, RingRule):
        return RingAttention(site.kernel_call, site.rule)
    return SlotAttention(site.kernel_call, site.rule)


def _held(module: fx.GraphModule, name: str, tensor: torch.Tensor | None) -> fx.Node | None:
    """A node that reads the tensor from a buffer of the module; None for no tensor."""
    if tensor is None:
        return None
    module.register_buffer(name, tensor, persistent=False)
    node = module.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def _flat(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The node's value, one learned number a query head in any shape, as [Hq]."""
    value = node.meta["val"]
    if value.dim() == 1:
        return node
    flat = graph.call_function(aten.reshape.default, (node, [-1]))
    flat.meta["val"] = value.reshape(-1)
    return flat


def replace_attention_node(old: fx.Node, new: fx.Node, is_tuple: bool) -> None:
    """Replace an attention's node by `new` and erase it.

    If `is_tuple` (flash_attn), the attention's output is the first item of the tuple that `old` gives.
    """
    if not is_tuple:
        old.replace_all_uses_with(new)
    for user in list(old.users):
        if args_of(user)[1] == 0:
            user.replace_all_uses_with(new)
        user.graph.erase_node(user)
    old.graph.erase_node(old)
