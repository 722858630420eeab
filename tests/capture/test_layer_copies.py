"""A graph in which layers were traced once is the graph in which each was."""

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import pytest
import torch
from decoders import Decoder, Layer, causal, decoder, within
from often import often
from tiny import FAMILIES
from torch import fx, nn

from qfpass.capture.computation_digest import digest_computation, repeated_layers
from qfpass.capture.export import capture
from qfpass.capture.layer_copies import LayerCopyError, layer_copy
from qfpass.errors import CaptureError
from qfpass.filters.calibrate import model_fingerprint

LAYERS = 3


def written(module: fx.GraphModule) -> list[Any]:
    """Every node, what it reads by order or name, where it stands and its form."""
    order = dict[fx.Node, str]()
    lines = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            held = attrgetter(node.target)(module)
            order[node] = f"{node.target} {getattr(held, 'dtype', '')} {tuple(getattr(held, 'shape', ()))}"
            continue
        order[node] = f"%{len(lines)}"
        operands = fx.map_arg((node.args, node.kwargs), lambda read: order[read])
        value = node.meta.get("val")
        form = (tuple(map(str, value.shape)), value.dtype) if isinstance(value, torch.Tensor) else None
        lines.append((node.op, str(node.target), str(operands), node.meta.get("nn_module_stack"), form))
    return lines


def alike(model: nn.Module) -> dict[str, str]:
    known = digest_computation(model, None, 64)
    assert known is not None
    return repeated_layers(model, known)


@pytest.fixture
def not_alike(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Why every layer was traced, each time that it was."""
    caplog.set_level(logging.INFO, "qfpass.capture.export")
    return lambda: [record.message for record in caplog.records if record.name == "qfpass.capture.export"]


@pytest.mark.parametrize("family", often(["llama", "gemma3", "gptj"], FAMILIES))
def test_the_graph_is_the_same(family: str, not_alike: Callable[[], list[str]]) -> None:
    """Of a GPT-J whose layers give attention weights too, as in older versions, every layer is traced."""
    model = FAMILIES[family](layers=LAYERS)
    found = alike(model)
    numbers = {"gemma3": {LAYERS - 2}, "gptj": {0, LAYERS - 1}}
    assert len(found) in numbers.get(family, {LAYERS - 1})
    once, each = capture(model, repeats=found), capture(model)
    assert written(once.module) == written(each.module)
    assert not not_alike()
    theirs = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in once.module.parameters()} == theirs


def test_only_the_first_of_a_kind_runs() -> None:
    runs = []
    model = decoder([causal, within(5)] * 3)
    found = alike(model)
    for layer in model.layers:
        layer.up.register_forward_hook(lambda module, *_: runs.append(module))
    capture(model, repeats=found)
    assert runs == [model.layers[0].up, model.layers[1].up]
    assert not any("forward" in vars(layer) for layer in model.layers)


class Mixed(Layer):
    """Keeps what it computes on the way, for another layer."""

    kept: ClassVar[list[torch.Tensor]] = []

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.kept[:] = [self.up(hidden)]
        return super().forward(hidden, positions)


class ReadsWhatIsKept(Decoder):
    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(hidden + self.layers[0].down(Mixed.kept[0]))


def test_what_is_claimed_to_be_alike_and_gives_more_is_traced() -> None:
    model = ReadsWhatIsKept(layers=LAYERS).eval()
    model.layers = nn.ModuleList(Mixed(causal, 24) for _ in range(LAYERS)).eval()
    assert alike(model) == {f"model.layers.{i}": "model.layers.0" for i in range(1, LAYERS - 1)}
    claimed = {f"model.layers.{i}": "model.layers.0" for i in range(1, LAYERS)}
    assert written(capture(model, repeats=claimed).module) == written(capture(model).module)


def test_layers_with_other_operands_are_traced() -> None:
    """Whatever is claimed: a number that isn't the template's, and a tensor more that isn't."""

    class Counting(Decoder):
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            hidden = self.tokens(input_ids)
            for number, layer in enumerate(self.layers):
                hidden = layer(hidden, position_ids + number // 2)
            return self.head(hidden)

    model = Counting(within(5), layers=LAYERS).eval()
    claimed = {f"model.layers.{i}": "model.layers.0" for i in range(1, LAYERS)}
    assert written(capture(model, repeats=claimed).module) == written(capture(model).module)


def _tie_the_first(model: Any) -> None:
    model.layers[2].norm.weight = model.layers[0].norm.weight


def _tie_neighbours(model: Any) -> None:
    model.layers[2].up.weight = model.layers[1].up.weight


def _tie_the_first_to_the_head(model: Any) -> None:
    model.head.extra = model.layers[0].up.weight


def _tie_modules(model: Any) -> None:
    model.layers[2].up = model.layers[1].up


def _hook_the_first(model: Any) -> None:
    model.layers[0].register_forward_hook(lambda *given: given[-1].clamp(-1, 1))


def _hook_all(model: Any) -> None:
    for layer in model.layers:
        layer.register_forward_hook(lambda *given: given[-1].clamp(-1, 1))


@pytest.mark.parametrize(
    "change",
    [
        _tie_the_first,
        _tie_neighbours,
        _tie_the_first_to_the_head,
        _tie_modules,
        _hook_the_first,
        _hook_all,
    ],
)
def test_what_is_found_alike_gives_the_same_graph(change: Callable[[Any], None]) -> None:
    model = decoder(layers=LAYERS)
    change(model)
    assert written(capture(model, repeats=alike(model)).module) == written(capture(model).module)


class CallsForward(Decoder):
    """Without what marks the nodes of a layer as its own."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids)
        for layer in self.layers:
            hidden = layer.forward(hidden, position_ids)
        return self.head(hidden)


class UnderAutocast(Decoder):
    """Which torch.export puts into a graph of its own."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                hidden = layer(hidden, position_ids)
        return self.head(hidden.float())


class TwoStreams(Decoder):
    """Of whose layers one is given another first tensor than the first layer, one another second."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        a, b = self.tokens(input_ids), self.tokens(input_ids + 0).cos()
        outs = [self.layers[0](a, b), self.layers[1](a.sin(), b), self.layers[2](a, b.sin())]
        return self.head(sum(outs, self.layers[3](a.exp(), b)))


class Adding(Layer):
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, torch.zeros_like(positions[..., 0])) + self.down(self.up(positions))


@pytest.mark.parametrize("kind", [CallsForward, UnderAutocast])
def test_odd_ways_of_calling_layers(kind: type[Decoder]) -> None:
    model = kind(layers=LAYERS).eval()
    assert written(capture(model, repeats=alike(model)).module) == written(capture(model).module)


def test_layers_of_two_streams() -> None:
    model = TwoStreams(layers=4).eval()
    model.layers = nn.ModuleList(Adding(causal, 24) for _ in range(4)).eval()
    assert alike(model)
    assert written(capture(model, repeats=alike(model)).module) == written(capture(model).module)


class Doubled(Layer):
    """By a tensor that its code makes."""

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, positions) * torch.tensor([2.0])


def test_numbers_in_code_are_named_by_every_layer() -> None:
    """Else a value of the first would be alive in all others."""
    model = decoder(layers=LAYERS)
    model.layers = nn.ModuleList(Doubled(causal, 24) for _ in range(LAYERS)).eval()
    found = alike(model)
    assert len(found) == LAYERS - 1
    once, each = (capture(model, repeats=given) for given in (found, {}))
    nodes, others = written(once.module), written(each.module)
    assert [node[:2] for node in nodes] == [node[:2] for node in others]
    assert model_fingerprint(once, []) == model_fingerprint(each, []), "filters of one are found by the other"


class Scaled(Layer):
    """By a tensor that is neither parameter nor buffer, which its owner may change."""

    def __init__(self) -> None:
        super().__init__(causal, 24)
        self.scale = torch.full((1,), 2.0)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, positions) * self.scale


class AddsIntoASum(Layer):
    """Of all layers, in place."""

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        positions[..., :3].add_(hidden[..., :3])
        return super().forward(hidden, positions)


class SeesTheFirst(Layer):
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden, positions) + self.down(self.up(positions))


class PassesATensor(Decoder):
    """The first hidden value, under a name of its own, in the positions' place."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        passed = hidden.detach() if isinstance(self.layers[0], SeesTheFirst) else torch.zeros_like(hidden)
        for layer in self.layers:
            hidden = layer(hidden, passed)
        return self.head(hidden + passed)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Scaled, "reads model.layers.0.scale, which is neither"),
        (AddsIntoASum, "changes what it is given"),
        (SeesTheFirst, None),
    ],
)
def test_layers_that_read_or_change_other_tensors(
    layer: Callable[..., Layer], reason: str | None, not_alike: Callable[[], list[str]]
) -> None:
    model = PassesATensor(layers=LAYERS).eval()
    make = layer if layer is Scaled else lambda: layer(causal, 24)
    model.layers = nn.ModuleList(make() for _ in range(LAYERS)).eval()
    found = alike(model)
    assert found
    assert written(capture(model, repeats=found).module) == written(capture(model).module)
    assert [reason is not None and reason in told for told in not_alike()] == [True] * bool(reason)


def test_forwards_are_as_they_were_after_a_failure(not_alike: Callable[[], list[str]]) -> None:
    model = decoder(layers=LAYERS)
    found, own = alike(model), model.layers[1].forward
    model.layers[1].forward = own
    model.norm.forward = lambda _: 1 / 0
    with pytest.raises(CaptureError, match="ZeroDivisionError"):
        capture(model, repeats=found)
    assert len(not_alike()) == 1
    assert [vars(layer).get("forward") for layer in model.layers] == [None, own, None]


def test_a_layer_of_a_graph_that_lacks_its_weight() -> None:
    model = decoder(layers=LAYERS)
    model.layers[1].norm = nn.Identity()
    claimed = {"model.layers.1": "model.layers.0"}
    assert written(capture(model, repeats=claimed).module) == written(capture(model).module)


def test_the_call_stands_for_a_layer_in_a_graph_alone() -> None:
    token = torch.zeros(1, 1, 4)
    with pytest.raises(LayerCopyError, match="only in a graph"):
        layer_copy(token, token, token, "layers.0", "layers.1")
