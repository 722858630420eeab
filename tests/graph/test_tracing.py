"""Tracing leaves out what nobody reads, and leaves the process as it was."""

import linecache
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from qfpass.graph.tracing import (
    WithoutGradMode,
    read_rather_than_run,
    without_fake_results_kept,
    without_source_lines_kept,
    without_stack_traces,
)


class Careful(nn.Module):
    """Half of it without gradients, as rotary embeddings are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x.sin()
        return y + x


class Traced(Careful):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with WithoutGradMode():
            return super().forward(x)


def calls_of(module: nn.Module) -> set[str]:
    program = torch.export.export(module, (torch.ones(3),), strict=False)
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_the_grad_mode_is_not_part_of_a_graph() -> None:
    assert calls_of(Traced()) == {"aten.sin.default", "aten.add.Tensor"}
    assert any("set_grad" in name for name in calls_of(Careful()))
    assert torch.is_grad_enabled()


def test_the_grad_mode_is_switched_all_the_same() -> None:
    x = torch.ones(3, requires_grad=True)
    with WithoutGradMode():
        with torch.no_grad():
            assert not (x * 2).requires_grad
        assert (x * 2).requires_grad


def test_stack_traces_are_taken_up_again() -> None:
    assert not fx.config.do_not_emit_stack_traces
    with without_stack_traces():
        with without_stack_traces():
            assert fx.config.do_not_emit_stack_traces
        assert fx.config.do_not_emit_stack_traces
    assert not fx.config.do_not_emit_stack_traces


def test_fake_results_are_kept_again() -> None:
    assert torch._dynamo.config.fake_tensor_cache_enabled
    with without_fake_results_kept():
        with without_fake_results_kept():
            assert not torch._dynamo.config.fake_tensor_cache_enabled
        assert not torch._dynamo.config.fake_tensor_cache_enabled
    assert torch._dynamo.config.fake_tensor_cache_enabled


def test_lines_of_files_are_forgotten_and_those_of_no_file_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(linecache, "cache", {"a cell": (5, None, ["y = 2\n"], "a cell")})
    with without_source_lines_kept():
        assert linecache.getline(str(source), 1) == "x = 1\n"
    assert set(linecache.cache) == {"a cell"}
    assert linecache.getline(str(source), 1) == "x = 1\n"
    assert linecache.getline("a cell", 1) == "y = 2\n"


def test_python_is_generated_when_a_graph_runs() -> None:
    graph = fx.symbolic_trace(Careful()).graph
    module = read_rather_than_run(nn.Module(), graph)
    assert "_code" not in vars(module)
    torch.testing.assert_close(module(torch.ones(3)), Careful()(torch.ones(3)))
    assert "sin" in vars(module)["_code"]
