"""Run a decoder piece by piece: the prologue before the layers, layer after layer, then the head.

Each kind of layer is compiled once. In every call the first layer of a kind goes through Dynamo and its
guards. The other layers of that kind have operands of the same shapes and dtypes, so the code that ran for
the first is called for them directly, past Dynamo and AOTAutograd.
"""

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import fx

from ..config import Config
from ..regions.pieces import Pieces
from ..upstream.inductor import Generated
from .cpu_replay import run_and_record
from .inductor_backend import GeneratedCall
from .lower import compiled_by_inductor, mark_length
from .weight_guard import weights_of


class Piecewise:
    """A callable body(*inputs) -> hidden [B, S, E], or logits [B, S, V] if there is a head.

    Args:
        longest: calls have 2 to `longest` tokens; None: always one token.
        options: Inductor's options.
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
        self._layers = [(kinds[layer.kind], _chooser(layer.operands)) for layer in pieces.layers]
        self._head = Piece(head, config, longest, options) if head else None
        self._longest, self._with_length = longest, pieces.with_length
        self._weights = pieces.weights
        self.pieces = (self._prologue, *kinds.values(), *((self._head,) if self._head else ()))

    def reports_runs(self, inputs: Sequence[Any]) -> bool:
        """Whether the backend reports the runs of its code, without which layers can't run past Dynamo.

        This runs the prologue alone. That writes to no store, so the caller can still choose another way.
        """
        try:
            self._prologue.call_through_dynamo(inputs)
            return self._prologue.has_reported_run
        finally:
            self._prologue.release()

    def __call__(self, *inputs: Any) -> torch.Tensor:
        first = set[Piece]()
        try:
            hidden, *made = self._prologue.call_through_dynamo(inputs)
            values = (*inputs, *self._weights, *made)
            self._mark([hidden, *made])
            for piece, operands in self._layers:
                of_layer = (hidden, *operands(values))
                if piece in first:
                    hidden = piece(of_layer)
                else:
                    first.add(piece)
                    self._mark([hidden])
                    hidden = piece.call_through_dynamo(of_layer)
            return self._head.call_through_dynamo((hidden,)) if self._head else hidden
        finally:
            for piece in self.pieces:
                piece.release()

    def _mark(self, tensors: Sequence[torch.Tensor]) -> None:
        """Mark as dynamic the text-long dimensions of hidden and of the prologue's other results."""
        if self._longest is None:
            return
        for tensor, dims in zip(tensors, self._with_length, strict=False):
            for dim in dims:
                mark_length(tensor, dim, self._longest)


def _chooser(numbers: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that gives those of its argument's items."""
    return itemgetter(*numbers) if len(numbers) > 1 else lambda values: [values[n] for n in numbers]


class Piece:
    """A compiled graph that is called several times in a row with operands of the same shapes and dtypes."""

    def __init__(
        self, module: fx.GraphModule, config: Config, longest: int | None, options: dict[str, Any]
    ) -> None:
        # A copy with its own code object, by which Dynamo caches: chunk and step share `module`.
        self.module = module = fx.GraphModule(module, module.graph)
        self._weight_ids = {id(weight) for weight in weights_of(module)}
        self._compiled = compiled_by_inductor(module, config, longest, self._note, **options)
        self._wirings = dict[Generated, _Wiring | None]()
        self._last_run: GeneratedCall | None = None
        self._wiring: _Wiring | None = None

    def _note(self, ran: GeneratedCall) -> None:
        self._last_run = ran

    @property
    def has_reported_run(self) -> bool:
        """Whether the last call reported a run of generated code."""
        return self._last_run is not None

    def release(self) -> None:
        """Release the last call's tensors."""
        self._last_run = self._wiring = None

    def call_through_dynamo(self, operands: Sequence[Any]) -> Any:
        """The output for these operands, through Dynamo, which checks its guards and compiles if needed."""
        self.release()
        out = self._compiled(*operands)
        if self._last_run is not None:
            generated = self._last_run.generated
            if generated not in self._wirings:
                self._wirings[generated] = _wiring_of(self._last_run, operands, out, self._weight_ids)
            self._wiring = self._wirings[generated]
        return out

    def __call__(self, operands: Sequence[Any]) -> Any:
        """The output for operands of the same shapes and dtypes as those of the last `call_through_dynamo`.

        It calls the generated code directly, or goes through Dynamo if the wiring is unknown.
        """
        if self._wiring is None or self._last_run is None:
            return self._compiled(*operands)
        given = self._last_run.inputs
        inputs = [operands[i] if i >= 0 else given[n] for n, i in enumerate(self._wiring.inputs)]
        return run_and_record(self._last_run.generated, inputs)[self._wiring.output]


class _Wiring(NamedTuple):
    """How a piece's operands and output map to those of its generated code.

    Attributes:
        inputs: for each input of the generated code the index of an operand, -1 if it is none of them.
        output: the index of the generated code's output that is the piece's output.
    """

    inputs: tuple[int, ...]
    output: int


def _wiring_of(
    ran: GeneratedCall, operands: Sequence[Any], out: Any, weight_ids: Collection[int]
) -> _Wiring | None:
    """The wiring of a run, found by the identity of tensors; None if that is ambiguous.

    It is ambiguous if two operands are the same tensor, or if an input or the output of the generated code is
    a tensor that was made in between. `weight_ids` are the ids of the piece's own weights.
    """
    numbers = {id(operand): i for i, operand in enumerate(operands) if isinstance(operand, torch.Tensor)}
    tensors = sum(isinstance(operand, torch.Tensor) for operand in operands)
    outputs = [i for i, output in enumerate(ran.outputs) if output is out]
    unknown = (
        isinstance(given, torch.Tensor) and id(given) not in numbers and id(given) not in weight_ids
        for given in ran.inputs
    )
    if len(numbers) < tensors or not outputs or any(unknown):
        return None
    return _Wiring(tuple(numbers.get(id(given), -1) for given in ran.inputs), outputs[0])
