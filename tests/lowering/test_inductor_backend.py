"""Generated code tells of its runs, new or kept by the caches of AOTAutograd and Inductor."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from qfpass import code_digest
from qfpass.lowering.cpu_replay import RecordedKernels
from qfpass.lowering.inductor_backend import GeneratedCall, reporting_inductor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def twice(x: torch.Tensor) -> torch.Tensor:
    return x + x


def hits() -> int:
    """Of the caches: AOTAutograd's, or Inductor's where that isn't used."""
    return counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]


@torch.no_grad()
def is_kept(bound: int | None = None) -> bool:
    """Whether a graph that is compiled anew is found in the caches; it tells of its run and is recorded."""
    torch.compiler.reset()
    told, before, x = list[GeneratedCall](), hits(), torch.arange(3.0)
    compiled = torch.compile(twice, backend=reporting_inductor({"size_asserts": False}, told.append, bound))
    out = compiled(x)
    torch.testing.assert_close(out, 2 * x)
    (run,) = told
    assert any(given is x for given in run.inputs) and any(out is given for given in run.outputs)
    assert RecordedKernels(compiled, [x]).is_replayable
    return hits() > before


def test_code_is_kept() -> None:
    assert [is_kept(), is_kept()] == [False, True]


def test_another_bound_is_other_code() -> None:
    assert [is_kept(bound) for bound in (8, 9, 8)] == [False, False, True]


def test_what_other_sources_made_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    is_kept()
    monkeypatch.setattr(code_digest, "DIGEST", "of other lowerings")
    assert not is_kept()
