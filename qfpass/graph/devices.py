"""The devices on which parts of a graph run, and how values are handed from one to another.

A model on meta, which holds no numbers, runs on the processor.
"""

import torch
from torch import fx, nn
from torch.fx.node import Argument

from ..upstream.operators import available_operators
from .nodes import args_of

aten = torch.ops.aten


def put_constants_on(device: torch.device, graph: fx.Graph) -> None:
    """Change every device that an operator of the graph names to `device`, in place."""

    def moved(argument: Argument) -> Argument:
        return device if isinstance(argument, torch.device) else argument

    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)


def device_of(traced: torch.Tensor) -> torch.device:
    """Where values that depend on positions alone are computed: a traced value's device, or the processor."""
    return torch.device("cpu") if traced.is_meta else traced.device


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices of a model's parameters, in their order."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def handed_over(value: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The value on another device; None for None."""
    return None if value is None else value.to(device)


def size_handed_over(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of this size on another device; nobody reads its numbers."""
    return torch.empty(value.shape, device=device)


HAND_OVERS = (handed_over, size_handed_over)


def write_hand_overs(graph: fx.Graph) -> None:
    """Replace what moves traced values between devices of one kind by calls of `handed_over`, in place."""
    moves = {aten.to.dtype_layout, aten.to.device, *available_operators("aten::_to_copy")}
    for node in [node for node in graph.nodes if node.target in moves]:
        source = args_of(node)[0]
        before, after = source.meta.get("val"), node.meta.get("val")
        if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
            continue
        if before.device == after.device or before.device.type != after.device.type:
            continue
        with graph.inserting_before(node):
            moved = graph.call_function(handed_over, (source, after.device))
            moved.meta = {**node.meta, "val": after.to(before.dtype)}
            new = moved
            if before.dtype != after.dtype:
                new = graph.call_function(aten.to.dtype, (moved, after.dtype))
                new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


class HandOvers:
    """Adds to a graph what hands its inputs, which lie on `source`, to the devices of layers."""

    def __init__(self, graph: fx.Graph, source: torch.device) -> None:
        self._graph, self._source = graph, source
        self._known = dict[tuple[fx.Node, torch.device, bool], fx.Node]()

    def __call__(self, node: fx.Node, device: torch.device | None, sized: bool = False) -> fx.Node:
        """The value of an input on `device`, None for its own; if `sized`, another tensor of its size.

        It is handed over once, at the place where the graph is being written first.
        """
        if device is None or device == self._source:
            return node
        key = node, device, sized
        if key not in self._known:
            target = size_handed_over if sized else handed_over
            self._known[key] = self._graph.call_function(target, (node, device))
            self._known[key].meta = dict(node.meta)
        return self._known[key]


def handed_to(value: torch.Tensor, node: fx.Node) -> fx.Node:
    """An input of a decoder on the device of a traced value; added where the graph is being written."""
    ids = next(iter(node.graph.nodes)).meta["val"]  # where they lie, all inputs do
    if value.device == ids.device:
        return node
    return node.graph.call_function(handed_over, (node, value.device))
