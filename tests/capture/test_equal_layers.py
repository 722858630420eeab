"""Layers are alike only if they run the same operators on the same tensors, weights and one tensor aside."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from decoders import Decoder, Layer, causal, decoder, within
from tiny import FAMILIES
from torch import nn

from qfpass.capture.computation_digest import digest_computation, repeated_layers
from qfpass.capture.equal_layers import forwards_replaced, layers_of

LAYERS = 4
ALL = {f"model.layers.{i}": "model.layers.0" for i in range(1, LAYERS)}


def alike(model: nn.Module) -> dict[str, str]:
    known = digest_computation(model, None, 64)
    assert known is not None
    return repeated_layers(model, known)


def test_layers_of_one_kind() -> None:
    assert alike(decoder(layers=LAYERS)) == ALL


def test_layers_of_two_kinds() -> None:
    """Whose masks are made in them, from a number of their own."""
    kinds = [causal, within(5)] * 3
    assert alike(decoder(kinds)) == {f"model.layers.{i}": f"model.layers.{i % 2}" for i in range(2, 6)}


def test_layers_that_are_given_one_of_two_masks() -> None:
    found = alike(FAMILIES["gemma3"](layers=4))
    assert found == {f"model.model.layers.{i}": f"model.model.layers.{i % 2}" for i in (2, 3)}


def _scale(model: Decoder) -> None:
    model.layers[2].forward = lambda *args: 2 * Layer.forward(model.layers[2], *args)


def _widen(model: Decoder) -> None:
    model.layers[2].up, model.layers[2].down = nn.Linear(24, 72), nn.Linear(72, 24)


def _take_another_number(model: Decoder) -> None:
    model.layers[2].norm.eps = 2e-5


def _take_another_dtype(model: Decoder) -> None:
    model.layers[2].up.double()
    model.layers[2].up.forward = lambda x: F.linear(x.double(), model.layers[2].up.weight).float()


def _turn(model: Decoder) -> None:
    """The same numbers in another order in memory, which operators may see."""
    weight = model.layers[2].up.weight
    weight.data = weight.data.T.contiguous().T


@pytest.mark.parametrize("change", [_scale, _widen, _take_another_number, _take_another_dtype, _turn])
def test_one_layer_that_differs(change: Callable[[Decoder], None]) -> None:
    model = decoder(layers=LAYERS)
    change(model)
    assert alike(model) == {path: first for path, first in ALL.items() if path != "model.layers.2"}


def test_layers_that_share_a_weight_are_alike_without_the_others() -> None:
    model = decoder(layers=LAYERS)
    model.layers[2].up.weight = model.layers[1].up.weight
    assert alike(model) == {"model.layers.2": "model.layers.1", "model.layers.3": "model.layers.0"}


class Remembering(Layer):
    """Adds what the layer before it computed on the way."""

    memory: ClassVar[list[torch.Tensor]] = []

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        memory = self.memory
        before, memory[:] = list(memory), [F.silu(self.up(hidden))]
        out = super().forward(hidden, positions)
        return out + self.down(before[0]) if before else out


class Forgetting(Decoder):
    """Whose layers remember for one call."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        Remembering.memory.clear()
        return super().forward(input_ids, position_ids)


def test_layers_that_read_from_one_another() -> None:
    model = Forgetting(layers=LAYERS).eval()
    model.layers = nn.ModuleList(Remembering(causal, 24) for _ in range(LAYERS)).eval()
    assert alike(model) == {}


class Counting(Layer):
    """Counts its calls, as Python does."""

    calls: ClassVar[list[int]] = []

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(self.calls))
        return super().forward(hidden, positions)


class CountsAfterwards(Decoder):
    """Another layer sees as many tokens as there were calls before it, times eight."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        Counting.calls.clear()
        hidden = self.tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        self.last.attend = within(8 * len(Counting.calls))
        return self.head(self.last(hidden, position_ids))


def test_layers_whose_calls_another_counts() -> None:
    model = CountsAfterwards(layers=LAYERS).eval()
    model.layers = nn.ModuleList(Counting(causal, 24) for _ in range(LAYERS)).eval()
    model.last = Layer(causal, 24).eval()
    assert alike(model) == {}


class ReadsTheFirst(Decoder):
    """Whose layers are given the first hidden value too, under another name."""

    same: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        first = hidden = self.tokens(input_ids)
        for layer in self.layers:
            layer.first = self.same(first)
            hidden = layer(hidden, position_ids)
        return self.head(hidden)


class AddingTheFirst(Layer):
    first: torch.Tensor

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, positions) + self.down(self.up(self.first))


@pytest.mark.parametrize(
    "same", [torch.detach, torch.ops.aten.alias, lambda x: x[:], lambda x: x.to(x.dtype), torch.clone]
)
def test_the_first_layer_is_none_where_its_operands_are_one(same: Any) -> None:
    model = ReadsTheFirst(layers=LAYERS).eval()
    model.layers = nn.ModuleList(AddingTheFirst(causal, 24) for _ in range(LAYERS)).eval()
    model.same = same
    found = alike(model)
    if same is torch.clone:  # one more operator, but no layer's
        assert found == {}
    else:
        assert found == {"model.layers.2": "model.layers.1", "model.layers.3": "model.layers.1"}


class Twice(Decoder):
    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids)
        for layer in [*self.layers, *self.layers]:
            hidden = layer(hidden, position_ids)
        return self.head(hidden)


def test_layers_that_are_called_twice() -> None:
    assert alike(Twice(layers=LAYERS).eval()) == {}


def test_which_layers_are_looked_at() -> None:
    model: Any = decoder(layers=LAYERS)
    model.layers[1].register_forward_hook(lambda *given: None)
    model.layers[2].parts = nn.ModuleList([nn.Linear(2, 2)])
    assert set(layers_of(model)) == {"layers.0", "layers.2", "layers.3"}
    model.layers[3].up = model.layers[1].up
    assert layers_of(model) == {}


def test_a_replaced_forward_keeps_its_signature() -> None:
    layer = Layer(causal, 24)
    before = inspect.signature(layer.forward)
    with forwards_replaced({"layers.0": layer}, lambda _, forward: lambda *args: forward(*args)):
        assert inspect.signature(layer.forward) == before
