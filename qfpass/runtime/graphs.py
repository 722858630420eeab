"""The graphs of a decoder, lowered: a chunk of any length, a step, the head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..config import Config
from ..graph.pieces import take_apart
from ..graph.regions import Outlined
from .lower import lower
from .piecewise import Piecewise
from .weights import weights_of, with_weights_checked

# Inductor writes the parts of a concatenation (a rotary embedding's halves) to memory on processors; of one
# token that is slower than computing it where it is read.
STEP_OPTIONS = {"force_pointwise_cat": True}


class Graphs:
    """A decoder's graphs, compiled when they are called first.

    Inductor compiles a decoder that has regions piece by piece, and other backends and decoders are compiled
    whole.

    Attributes:
        chunk: (input_ids [B, S], position_ids, *rest) -> hidden [B, S, E], 1 < S <= `longest`; logits without
            a head.
        step: (input_ids [B, 1], position_ids, *rest) -> logits [B, 1, V].
        head: hidden [B, T, E] -> logits [B, T, V], T > 1; None if the body gives logits.
        modules: those that Dynamo compiles.
        weights: what they read where it lies.
    """

    def __init__(self, outlined: Outlined, config: Config, longest: int) -> None:
        body, head = outlined.body, outlined.head
        self.longest = longest
        self.modules: list[fx.GraphModule] = []
        self.weights = weights_of(nn.ModuleList([body, *([head] if head else [])]))
        self.chunk: Callable[..., torch.Tensor]
        self.step: Callable[..., torch.Tensor]
        if config.backend == "inductor" and head is not None:
            self.chunk = self._piecewise(outlined, None, config, longest=longest)
            self.step = self._piecewise(outlined, head, config, **STEP_OPTIONS)
        else:
            self.chunk = self._whole(body, config, longest)
            self.step = self._whole(_sequence(body, head) if head else body, config, None, **STEP_OPTIONS)
        self.head = self._whole(head, config, None) if head else None

    def _whole(
        self, module: fx.GraphModule, config: Config, longest: int | None, **options: Any
    ) -> Callable[..., torch.Tensor]:
        if module not in self.modules:
            self.modules.append(module)
        return lower(module, config, longest, **options)

    def _piecewise(
        self, outlined: Outlined, head: fx.GraphModule | None, config: Config, **options: Any
    ) -> Callable[..., torch.Tensor]:
        piecewise = Piecewise(take_apart(outlined), head, config, **options)
        self.modules.extend(piece.module for piece in piecewise.pieces)
        return with_weights_checked(piecewise, self.weights)


def _sequence(body: fx.GraphModule, head: fx.GraphModule) -> fx.GraphModule:
    """body then head, as one graph with the body's inputs."""
    graph = fx.Graph()
    inputs = [graph.placeholder(n.name) for n in body.graph.nodes if n.op == "placeholder"]
    hidden = graph.call_module("body", tuple(inputs))
    graph.output(graph.call_module("head", (hidden,)))
    return fx.GraphModule(nn.ModuleDict({"body": body, "head": head}), graph)
