"""A decoder run piece by piece: what is before the layers, layer after layer, the head.

Each kind of layer is compiled once. In every call Dynamo looks at the first layer of a kind; the others
have operands of the same form, so what ran for the first runs for them, past Dynamo and AOTAutograd.
"""

from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import fx

from ..config import Config
from ..graph.pieces import Pieces
from ..upstream.inductor import Generated
from .inductor import Run
from .lower import compiled_by_inductor, mark_length
from .recording import run
from .weights import weights_of


class Piecewise:
    """body(*inputs) -> hidden, or the head's logits if there is one.

    Args:
        longest: a call has any number of tokens from 2 to this one; by default always one.
        options: of Inductor.
    """

    def __init__(
        self,
        pieces: Pieces,
        head: fx.GraphModule | None,
        config: Config,
        longest: int | None = None,
        **options: Any,
    ) -> None:
        self._prologue = Piece(pieces.prologue, config, longest, options)
        kinds = {name: Piece(module, config, longest, options) for name, module in pieces.kinds.items()}
        self._layers = [(kinds[layer.kind], itemgetter(*layer.operands)) for layer in pieces.layers]
        self._head = Piece(head, config, longest, options) if head else None
        self._longest, self._with_length = longest, pieces.with_length
        self._weights = pieces.weights
        self.pieces = (self._prologue, *kinds.values(), *((self._head,) if self._head else ()))

    def tells(self, inputs: Sequence[Any]) -> bool:
        """Whether we are told of runs, without which nothing is gained; found by what is before the layers.

        That changes nothing, so another way can still be chosen.
        """
        try:
            self._prologue.check(inputs)
            return self._prologue.has_told
        finally:
            self._prologue.forget()

    def __call__(self, *inputs: Any) -> torch.Tensor:
        first = set[Piece]()
        try:
            hidden, *made = self._prologue.check(inputs)
            values = (*inputs, *self._weights, *made)
            self._mark([hidden, *made])
            for piece, operands in self._layers:
                of_layer = (hidden, *operands(values))
                if piece in first:
                    hidden = piece(of_layer)
                else:
                    first.add(piece)
                    self._mark([hidden])
                    hidden = piece.check(of_layer)
            return self._head.check((hidden,)) if self._head else hidden
        finally:
            for piece in self.pieces:
                piece.forget()

    def _mark(self, tensors: Sequence[torch.Tensor]) -> None:
        """Mark the lengths of hidden and of what else the prologue made."""
        if self._longest is None:
            return
        for tensor, dims in zip(tensors, self._with_length, strict=False):
            for dim in dims:
                mark_length(tensor, dim, self._longest)


class Piece:
    """A graph that is called with operands of one form several times in turn."""

    def __init__(
        self, module: fx.GraphModule, config: Config, longest: int | None, options: dict[str, Any]
    ) -> None:
        # Code of its own: Dynamo keeps what it has compiled by code, and chunks and steps are of one module.
        self.module = module = fx.GraphModule(module, module.graph)
        self._own = {id(weight) for weight in weights_of(module)}
        self._compiled = compiled_by_inductor(module, config, longest, self._note, **options)
        self._learned = dict[Generated, _Wiring | None]()
        self._ran: Run | None = None
        self._wiring: _Wiring | None = None

    def _note(self, ran: Run) -> None:
        self._ran = ran

    @property
    def has_told(self) -> bool:
        """Whether the last call told of a run."""
        return self._ran is not None

    def forget(self) -> None:
        """Let go of the last call's tensors."""
        self._ran = self._wiring = None

    def check(self, operands: Sequence[Any]) -> Any:
        """The output for these operands, by Dynamo, which compiles it if no code is there for their form."""
        self.forget()
        out = self._compiled(*operands)
        if self._ran is not None:
            generated = self._ran.generated
            if generated not in self._learned:
                self._learned[generated] = _learn(self._ran, operands, out, self._own)
            self._wiring = self._learned[generated]
        return out

    def __call__(self, operands: Sequence[Any]) -> Any:
        """The output for other operands of the same form as those that were checked last."""
        if self._wiring is None or self._ran is None:
            return self._compiled(*operands)
        given = self._ran.inputs
        inputs = [operands[i] if i >= 0 else given[n] for n, i in enumerate(self._wiring.inputs)]
        return run(self._ran.generated, inputs)[self._wiring.output]


class _Wiring(NamedTuple):
    """For each input of generated code the number of an operand, -1 if it is none; which output is wanted."""

    inputs: tuple[int, ...]
    output: int


def _learn(ran: Run, operands: Sequence[Any], out: Any, own: Collection[int]) -> _Wiring | None:
    """How a graph's operands reached the generated code, seen from a call.

    None if that isn't clear: two operands are one tensor, or what came in or out is a tensor that was made
    on the way.
    """
    numbers = {id(operand): i for i, operand in enumerate(operands) if isinstance(operand, torch.Tensor)}
    tensors = sum(isinstance(operand, torch.Tensor) for operand in operands)
    outputs = [i for i, output in enumerate(ran.outputs) if output is out]
    strange = (
        isinstance(given, torch.Tensor) and id(given) not in numbers and id(given) not in own
        for given in ran.inputs
    )
    if len(numbers) < tensors or not outputs or any(strange):
        return None
    return _Wiring(tuple(numbers.get(id(given), -1) for given in ran.inputs), outputs[0])
