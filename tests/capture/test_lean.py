"""What lean tracing leaves out changes nothing: a graph is the same if it isn't left out, or can't be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import causal, decoder, places, text
from tiny import FAMILIES
from torch import fx, nn

from qfpass.attention.find import find_attentions
from qfpass.capture.cache import load_captured, save_captured
from qfpass.capture.computation_digest import digest_computation, repeated_layers
from qfpass.capture.export import capture
from qfpass.graph.captured import Captured
from qfpass.graph.tracing import generate_python
from qfpass.proof.verify import verify
from qfpass.regions.outline import outline
from qfpass.rewriting.rewrite import rewrite
from qfpass.rewriting.site import Site
from qfpass.rewriting.uncompressed import kernel_call_of
from qfpass.store.slots import SlotRule
from qfpass.upstream.entry import ENTRIES, OnlyFast, UpstreamWarning

CONTEXT = 64
LEAN = [entry for entry in ENTRIES if isinstance(entry, OnlyFast) and entry.optimisation == "lean_tracing"]


def with_gradients(*given: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        return causal(*given)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": FAMILIES["llama"],
    "gemma3": FAMILIES["gemma3"],
    "with gradients": lambda: decoder(with_gradients),
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lean entries that were used; all of them fail."""
    names = list[str]()

    def fail(name: str) -> Callable[..., Any]:
        def failing(*_: Any, **__: Any) -> Any:
            names.append(name)
            raise AttributeError(f"{name} has gone")

        failing.__name__ = name
        return failing

    for entry in LEAN:
        monkeypatch.setattr(entry, "function", fail(entry.function.__name__))
        monkeypatch.setattr(entry, "failure", None)
    return names


def written(captured: Captured) -> list[str]:
    """Every node, what it reads by order, what it gives and where it stands; names of nodes may differ."""
    order, lines = dict[fx.Node, str](), list[str]()
    for node in captured.module.graph.nodes:
        order[node] = str(node.target) if node.op == "get_attr" else f"%{len(lines)}"
        operands = fx.map_arg((node.args, node.kwargs), order.__getitem__)
        lines.append(f"{node.op} {node.target} {operands} {node.meta['val']} {node.meta['nn_module_stack']}")
    return lines


def proven(model: nn.Module, lean: bool) -> Captured:
    captured = capture(model, lean=lean)
    verify(model, captured, find_attentions(captured, CONTEXT))
    return captured


def outlined_of(captured: Captured) -> nn.Module:
    rule = SlotRule(CONTEXT, recent=1, sinks=0, score="recency", is_bounded=False)
    sites = [Site(a, rule, kernel_call_of(captured, a)) for a in find_attentions(captured, CONTEXT)]
    return outline(rewrite(captured, sites), captured.lean).body


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_the_same_if_tracing_is_not_lean(name: str, used: list[str]) -> None:
    captured = proven(MODELS[name](), lean=False)
    assert used == [] and not captured.lean
    captured.module.graph.lint()
    body = outlined_of(captured)
    assert used == [] and "_code" in vars(body)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_the_same_where_lean_tracing_fails(name: str, used: list[str]) -> None:
    with pytest.warns(UpstreamWarning, match="lean_tracing is not available"):
        failed = proven(MODELS[name](), lean=True)
    reached = {"lazily_made_modules", "without_grad_mode", "without_stack_traces", "lazy_graph_module"}
    assert reached <= set(used)
    assert written(failed) == written(capture(MODELS[name](), lean=False))


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_that_was_traced_lean_is_the_same(name: str) -> None:
    lean, whole = (capture(MODELS[name](), lean=lean) for lean in (True, False))
    assert written(lean) == written(whole)
    assert isinstance(outlined_of(lean), fx.GraphModule)


def test_layers_are_alike_and_kept_if_tracing_is_not_lean(
    used: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llama"](layers=3)
    known = digest_computation(model, None, CONTEXT, lean=False)
    assert known is not None
    alike = repeated_layers(model, known, lean=False)
    assert len(alike) == 2
    captured = capture(model, None, alike, lean=False)
    save_captured(tmp_path / "graph.pt", captured, model)
    again = load_captured(tmp_path / "graph.pt", model, lean=False)
    assert again is not None and not again.lean
    assert used == []
    monkeypatch.undo()
    lean = digest_computation(model, None, CONTEXT)
    assert lean is not None and lean.digest == known.digest
    ids = text(9, 2)
    with torch.no_grad():
        expected = model(ids, position_ids=places(ids)).logits
    torch.testing.assert_close(again.module(ids, places(ids)), expected, atol=1e-5, rtol=1e-5)


def test_an_identity_is_the_same_without_layers_noted() -> None:
    model = FAMILIES["llama"]()
    with_layers, without = (
        digest_computation(model, None, CONTEXT, layers=layers) for layers in (True, False)
    )
    assert with_layers is not None and without is not None
    assert with_layers.digest == without.digest
    assert without.texts[0].layers == {}


def test_python_is_there_for_dynamo_where_lazy_modules_fail(used: list[str]) -> None:
    with pytest.warns(UpstreamWarning):
        body = outlined_of(capture(FAMILIES["llama"]()))
    assert isinstance(body, fx.GraphModule)
    generate_python(body)
    assert "_code" in vars(body)
