"""Graphs that are run several times widen quantised weights once."""

from typing import Any

import pytest
import torch
from tiny import FAMILIES

import qfpass
from qfpass.graph.in_float32 import InFloat32
from qfpass.graph.kept_weights import DEQUANTISES, KeepsWeights, is_quantised_weight
from qfpass.graph.nodes import name_of

quantization = pytest.importorskip("torchao.quantization")
IDS, POSITIONS = torch.arange(6)[None], torch.arange(6)[None]


@pytest.fixture(scope="module")
def graph() -> Any:
    model = FAMILIES["llama"](head_dim=16, dtype=torch.bfloat16)
    quantization.quantize_(model, quantization.IntxWeightOnlyConfig(torch.int4))
    return qfpass.find(model).captured.module


def widened_in(run: KeepsWeights, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each of two runs widens."""
    counts = [0, 0]
    original = torch.fx.Interpreter.call_function

    def counting(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        counts[-1] += name_of(target).startswith(DEQUANTISES)
        return original(self, target, args, kwargs)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", counting)
    first = run(IDS, POSITIONS)
    counts[0], counts[1] = counts[1], 0
    torch.testing.assert_close(run(IDS, POSITIONS), first, rtol=0, atol=0)
    return counts


@pytest.mark.parametrize("kind", [KeepsWeights, InFloat32])
def test_a_second_run_widens_nothing(
    graph: Any, kind: type[KeepsWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(map(is_quantised_weight, graph.graph.nodes))
    assert weights > 10 and widened_in(kind(graph), monkeypatch) == [weights, 0]


def test_weights_beyond_the_most_that_is_kept_are_widened_again(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = widened_in(KeepsWeights(graph, most=20_000), monkeypatch)
    assert 0 < again < whole


def test_a_run_gives_what_the_graph_gives(graph: Any) -> None:
    torch.testing.assert_close(KeepsWeights(graph)(IDS, POSITIONS), graph(IDS, POSITIONS), rtol=0, atol=0)
