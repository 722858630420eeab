"""What Dynamo promises of the graphs that it gives to backends, and of the frame that it compiles."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import fx, nn

from qfpass.upstream.dynamo_graph import (
    example_of,
    is_argument,
    last_step,
    module_being_traced,
    name_in_model,
    source_of,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.register_buffer("scale", torch.ones(1))
        self.factor = math.pi

    def forward(self, ids: torch.Tensor, *more: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](ids) * self.scale * self.factor + more[0]
        return x.expand(ids.shape[0], 3) + named["position_ids"]


class Seen(NamedTuple):
    model: nn.Module
    module: nn.Module | None
    sources: dict[str, str]
    examples: dict[str, Any]


class Wrapped(Model):
    """As a decorator leaves it that knows nothing of what it passes on."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return Model.forward(*args, **kwargs)


@pytest.fixture(scope="module", params=[Model, Wrapped])
def seen(request: pytest.FixtureRequest) -> Seen:
    found = dict[str, Any]()

    def backend(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        found["module"] = module_being_traced()
        found["sources"] = {source_of(node): node.name for node in places}
        found["examples"] = {source_of(node): example_of(node) for node in places}
        return graph.forward

    torch.compiler.reset()
    model, (ids, more, places) = (
        request.param(),
        (torch.ones(4, 3) for _ in range(3)),
    )  # one given twice is one input
    torch.compile(model, backend=backend, fullgraph=True, dynamic=True)(ids, more, position_ids=places)
    return Seen(model, **found)


def test_module_being_traced_is_the_one_that_is_called(seen: Seen) -> None:
    assert seen.module is seen.model


def test_source_of_an_input_says_where_it_is_in_the_call(seen: Seen) -> None:
    arguments = {source for source in seen.sources if is_argument(source)}
    names = {"L['ids']", "L['more'][0]", "L['named']['position_ids']"}
    passed_on = {"L['args'][1]", "L['args'][2]", "L['kwargs']['position_ids']"}
    assert (passed_on if isinstance(seen.model, Wrapped) else names) <= arguments


def test_is_argument_is_false_of_what_is_the_models(seen: Seen) -> None:
    others = [source for source in seen.sources if not is_argument(source)]
    assert sum("_parameters" in source for source in others) == 2
    assert sum("_buffers" in source for source in others) == 1


def test_last_step_is_the_argument_as_it_was_given(seen: Seen) -> None:
    named = {last_step(source) for source in seen.sources if is_argument(source)}
    assert ({"1", "2"} if isinstance(seen.model, Wrapped) else {"ids", "0"}) | {"position_ids"} <= named


def test_name_in_model_is_the_models_own(seen: Seen) -> None:
    weights = {**dict(seen.model.named_parameters()), **dict(seen.model.named_buffers())}
    found = {name_in_model(source) for source in seen.sources if not is_argument(source)}
    assert weights.keys() <= found


def test_example_of_an_input_has_its_form(seen: Seen) -> None:
    ids = seen.examples["L['args'][1]" if isinstance(seen.model, Wrapped) else "L['ids']"]
    assert isinstance(ids, torch.Tensor) and ids.shape[1] == 3
    assert isinstance(ids.shape[0], torch.SymInt)
    numbers = [value for value in seen.examples.values() if isinstance(value, torch.SymInt)]
    assert str(ids.shape[0].node.expr) in {str(number.node.expr) for number in numbers}
