"""A decoder's graphs as callables: a chunk of any length, one of few tokens, a step of one, and the head."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import fx, nn

from ..config import Config
from ..kernels.cpu.tokens import MOST
from ..regions.outline import Outlined
from ..regions.packed_copy import PackedCopy
from ..regions.pieces import Pieces, take_apart
from ..regions.step_linears import for_few_tokens
from ..upstream.inductor import backend_for_pieces
from .inductor_backend import compile_wait
from .lower import lower
from .piecewise import Piecewise
from .weight_guard import weights_of, with_weights_checked

Call = Callable[..., torch.Tensor]

# On CPUs Inductor writes the parts of a concatenation (a rotary embedding's halves) to memory. For a single
# token it is faster to compute them where they are read.
STEP_OPTIONS = {"force_pointwise_cat": True}
RUNS_NOT_REPORTED = "Inductor doesn't tell of its code's runs"


class FewTokens(NamedTuple):
    """Chunk and head for calls of one row and 2 to `longest` tokens, which read each weight once."""

    chunk: Call
    head: Call
    longest: int


class DecoderGraphs(Protocol):
    """The callables of a decoder, and the weights that they read.

    Attributes:
        chunk: (input_ids [B, S], position_ids [B, S], *rest) -> hidden [B, S, E], 1 < S; it returns logits
            [B, S, V] if there is no head. `rest` are the inputs of `StepInputs`.
        step: (input_ids [B, 1], position_ids [B, 1], *rest) -> logits [B, 1, V].
        head: hidden [B, T, E] -> logits [B, T, V], T > 1; None if chunks return logits.
        few: the same for few tokens; None if `chunk` and `head` are as good.
        watch: finds what a step will overwrite, see `decoder.overwritten_slots.finder_graph`; None if it
            isn't compiled yet.
        longest: S is at most this.
        rows: the numbers of rows that a call may have; None for any number.
        follows_length: whether a row's logits depend on the position of the last token in any row of a call.
        modules: the graph modules that Dynamo compiles.
        weights: the parameters and buffers that are read in place, and packed copies of weights.
        kinds: the number of kinds of layer.
        own_loops: whether the package's C++ loops are used.
        packed: the packed copies of quantised weights.
        why_not_piecewise: why chunks and steps aren't run piece by piece; None if they are.
    """

    @property
    def chunk(self) -> Call: ...

    @property
    def step(self) -> Call: ...

    @property
    def head(self) -> Call | None: ...

    @property
    def few(self) -> FewTokens | None: ...

    @property
    def watch(self) -> Callable[..., Any] | None: ...

    @property
    def longest(self) -> int: ...

    @property
    def rows(self) -> Sequence[int] | None: ...

    @property
    def follows_length(self) -> bool: ...

    @property
    def modules(self) -> list[fx.GraphModule]: ...

    @property
    def weights(self) -> Sequence[torch.Tensor]: ...

    @property
    def kinds(self) -> int: ...

    @property
    def own_loops(self) -> bool: ...

    @property
    def packed(self) -> Sequence[PackedCopy]: ...

    @property
    def why_not_piecewise(self) -> str | None: ...


class Graphs:
    """A decoder's graphs, compiled by torch.compile, each at its first call; see `DecoderGraphs`.

    Chunk and step are compiled piece by piece (see `piecewise`) if the decoder has repeated layers and the
    backend is Inductor and reports the runs of its code. Otherwise each of them is compiled as one graph.
    """

    def __init__(self, outlined: Outlined, config: Config, longest: int, own_loops: bool = False) -> None:
        body, head = outlined.body, outlined.head
        self.outlined, self.longest, self.own_loops = outlined, longest, own_loops
        self.kinds = outlined.kinds
        self.packed: Sequence[PackedCopy] = outlined.packed
        self.watch: Callable[..., Any] | None = None
        self.rows: Sequence[int] | None = None
        self.follows_length = any(n.users for n in body.graph.nodes if n.name == "call_end")
        self.modules: list[fx.GraphModule] = []
        self.weights: Sequence[torch.Tensor] = weights_of(nn.ModuleList([body, *([head] if head else [])]))

        def whole_chunk() -> Call:
            return self._compile_whole(body, config, longest)

        def whole_step() -> Call:
            return self._compile_whole(_sequence(body, head) if head else body, config, None, **STEP_OPTIONS)

        self.why_not_piecewise: str | None = _why_whole(outlined, config)
        self.chunk: Call
        self.step: Call
        if self.why_not_piecewise is None:
            chunks = Piecewise(take_apart(outlined), None, config, longest)
            steps = Piecewise(take_apart(outlined), head, config, **STEP_OPTIONS)
            self.chunk = self._compile_piecewise("chunk", chunks, whole_chunk)
            self.step = self._compile_piecewise("step", steps, whole_step)
            self.why_not_piecewise = "nothing has been read yet"
        else:
            self.chunk, self.step = whole_chunk(), whole_step()
        self.head: Call | None = self._compile_whole(head, config, None) if head else None
        self._config = config
        self._few: FewTokens | None = None

    @property
    def few(self) -> FewTokens | None:
        """See `DecoderGraphs`: there are such graphs where layers run piece by piece, with our loops."""
        head = self.outlined.head
        if self._few is None and self.own_loops and self.why_not_piecewise is None and head is not None:
            most = min(MOST, self.longest)
            pieces = Piecewise(_for_few_tokens(take_apart(self.outlined)), None, self._config, most)
            self.modules.extend(piece.module for piece in pieces.pieces)
            chunk = with_weights_checked(pieces, self.weights)
            self._few = FewTokens(chunk, self._compile_whole(for_few_tokens(head), self._config, None), most)
        return self._few

    def _compile_whole(
        self, module: fx.GraphModule, config: Config, longest: int | None, **options: Any
    ) -> Call:
        # Dynamo's graphs are counted by code object. A graph module regenerates the code of those inside it,
        # so this one must be in no other.
        module = fx.GraphModule(module, module.graph)
        self.modules.append(module)
        return lower(module, config, longest, **options)

    def _compile_piecewise(self, name: str, pieces: Piecewise, whole: Callable[[], Call]) -> Call:
        """The first value of the attribute `name`: its first call replaces it by `pieces` or by `whole()`.

        It takes `pieces` if Inductor reports the runs of its code, which only a call shows.
        """
        self.modules.extend(piece.module for piece in pieces.pieces)
        checked = with_weights_checked(pieces, self.weights)

        def choose_and_call(*inputs: Any) -> torch.Tensor:
            with compile_wait():
                call, self.why_not_piecewise = checked, None
                if backend_for_pieces.failure is None and not pieces.reports_runs(inputs):
                    backend_for_pieces.give_up("it told of no run")
                if backend_for_pieces.failure is not None:
                    call, self.why_not_piecewise = whole(), RUNS_NOT_REPORTED
                setattr(self, name, call)
                return call(*inputs)

        return choose_and_call


def _for_few_tokens(pieces: Pieces) -> Pieces:
    kinds = {name: for_few_tokens(module) for name, module in pieces.kinds.items()}
    return replace(pieces, prologue=for_few_tokens(pieces.prologue), kinds=kinds)


def _why_whole(outlined: Outlined, config: Config) -> str | None:
    """The reason why a decoder can't run piece by piece; None if it can."""
    if not config.switches.piecewise:
        return "it is turned off"
    if config.backend != "inductor":
        return f"the backend is {config.backend!r}"
    if outlined.head is None:
        return "the graph has no repeated layers"
    return None if backend_for_pieces.failure is None else RUNS_NOT_REPORTED


def _sequence(body: fx.GraphModule, head: fx.GraphModule) -> fx.GraphModule:
    """One graph that calls body, then head; its inputs are the body's."""
    graph = fx.Graph()
    inputs = [graph.node_copy(n) for n in body.graph.nodes if n.op == "placeholder"]
    hidden = graph.call_module("body", tuple(inputs))
    graph.output(graph.call_module("head", (hidden,)))
    return fx.GraphModule(nn.ModuleDict({"body": body, "head": head}), graph)
