"""The device on which parts of a graph run: the processor, for a model on meta, which holds no numbers."""

import torch
from torch import fx
from torch.fx.node import Argument


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
