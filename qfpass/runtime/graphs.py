"""The graphs of a decoder, lowered: a chunk of any length, a step, the head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..config import Config
from ..graph.pieces import take_apart
from ..graph.regions import Outlined
from ..upstream.inductor import backend_for_pieces
from .lower import lower
from .piecewise import Piecewise
from .weights import weights_of, with_weights_checked

Call = Callable[..., torch.Tensor]

# Inductor writes the parts of a concatenation (a rotary embedding's halves) to memory on processors; of one
# token that is slower than computing it where it is read.
STEP_OPTIONS = {"force_pointwise_cat": True}
UNTOLD = "Inductor doesn't tell of its code's runs"


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
        why_whole: why chunks and steps aren't run piece by piece, None if they are.
    """

    def __init__(self, outlined: Outlined, config: Config, longest: int) -> None:
        body, head = outlined.body, outlined.head
        self.longest = longest
        self.modules: list[fx.GraphModule] = []
        self.weights = weights_of(nn.ModuleList([body, *([head] if head else [])]))

        def whole_chunk() -> Call:
            return self._whole(body, config, longest)

        def whole_step() -> Call:
            return self._whole(_sequence(body, head) if head else body, config, None, **STEP_OPTIONS)

        self.why_whole = _why_whole(outlined, config)
        self.chunk: Call
        self.step: Call
        if self.why_whole is None:
            chunks = Piecewise(take_apart(outlined), None, config, longest)
            steps = Piecewise(take_apart(outlined), head, config, **STEP_OPTIONS)
            self.chunk = self._piecewise("chunk", chunks, whole_chunk)
            self.step = self._piecewise("step", steps, whole_step)
            self.why_whole = "nothing has been read yet"
        else:
            self.chunk, self.step = whole_chunk(), whole_step()
        self.head = self._whole(head, config, None) if head else None

    def _whole(self, module: fx.GraphModule, config: Config, longest: int | None, **options: Any) -> Call:
        # Code of its own, by which Dynamo's graphs are counted: a module around another renews the other's.
        module = fx.GraphModule(module, module.graph)
        self.modules.append(module)
        return lower(module, config, longest, **options)

    def _piecewise(self, name: str, pieces: Piecewise, whole: Callable[[], Call]) -> Call:
        """What the attribute `name` is at first, to be replaced by its first call.

        Which finds out whether Inductor tells of its code's runs.
        """
        self.modules.extend(piece.module for piece in pieces.pieces)
        checked = with_weights_checked(pieces, self.weights)

        def choose(*inputs: Any) -> torch.Tensor:
            call, self.why_whole = checked, None
            if backend_for_pieces.failure is None and not pieces.tells(inputs):
                backend_for_pieces.give_up("it told of no run")
            if backend_for_pieces.failure is not None:
                call, self.why_whole = whole(), UNTOLD
            setattr(self, name, call)
            return call(*inputs)

        return choose


def _why_whole(outlined: Outlined, config: Config) -> str | None:
    """Why a decoder isn't run piece by piece, None if it may be."""
    if not config.switches.piecewise:
        return "it is turned off"
    if config.backend != "inductor":
        return f"the backend is {config.backend!r}"
    if outlined.head is None:
        return "the graph has no repeated layers"
    return None if backend_for_pieces.failure is None else UNTOLD


def _sequence(body: fx.GraphModule, head: fx.GraphModule) -> fx.GraphModule:
    """body then head, as one graph with the body's inputs."""
    graph = fx.Graph()
    inputs = [graph.placeholder(n.name) for n in body.graph.nodes if n.op == "placeholder"]
    hidden = graph.call_module("body", tuple(inputs))
    graph.output(graph.call_module("head", (hidden,)))
    return fx.GraphModule(nn.ModuleDict({"body": body, "head": head}), graph)
