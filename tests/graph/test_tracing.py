"""Tracing leaves out what nobody reads, and leaves the process as it was."""

import linecache
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES
from torch import fx, nn

from qfpass.graph.tracing import (
    forgetting_source_lines,
    generate_python,
    lazy_code_module,
    trace_settings,
)


def test_lines_of_files_are_forgotten_and_those_of_no_file_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(linecache, "cache", {"a cell": (5, None, ["y = 2\n"], "a cell")})
    with forgetting_source_lines():
        assert linecache.getline(str(source), 1) == "x = 1\n"
    assert set(linecache.cache) == {"a cell"}
    assert linecache.getline(str(source), 1) == "x = 1\n"
    assert linecache.getline("a cell", 1) == "y = 2\n"


def module_of(lean: bool) -> fx.GraphModule:
    graph = fx.symbolic_trace(nn.ReLU()).graph
    return lazy_code_module(nn.Module(), graph, lean)


def test_python_is_generated_when_a_graph_runs() -> None:
    module = module_of(lean=True)
    assert "_code" not in vars(module)
    torch.testing.assert_close(module(torch.ones(3)), torch.ones(3))
    assert "relu" in vars(module)["_code"]


def test_python_of_a_graph_is_generated_at_once_if_tracing_is_not_lean() -> None:
    assert "relu" in vars(module_of(lean=False))["_code"]


def test_python_is_generated_of_all_parts() -> None:
    inner, outer = module_of(lean=True), module_of(lean=True)
    outer.add_submodule("inner", inner)
    outer.recompile()
    generate_python(outer)
    assert all("relu" in vars(part)["_code"] for part in (inner, outer))


def test_a_model_of_transformers_runs_sdpa_while_it_is_traced_and_its_own_attention_after() -> None:
    model = FAMILIES["llama"]()
    model.set_attn_implementation("eager")
    with trace_settings(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"
