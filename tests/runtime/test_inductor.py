"""Generated code tells of its runs, new or kept by the caches of AOTAutograd and Inductor."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from qfpass import sources
from qfpass.runtime.inductor import Inductor, Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@torch.no_grad()
def runs(bound: int | None = None) -> tuple[Sequence[Run], bool]:
    """What a graph tells that is compiled anew; whether AOTAutograd had kept it."""

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    torch.compiler.reset()
    told, before = list[Run](), counters["aot_autograd"]["autograd_cache_hit"]
    x = torch.arange(3.0)
    out = torch.compile(twice, backend=Inductor({}, told.append, bound))(x)
    torch.testing.assert_close(out, 2 * x)
    assert any(given is x for given in told[0].inputs) and any(out is given for given in told[0].outputs)
    return told, counters["aot_autograd"]["autograd_cache_hit"] > before


def test_code_that_was_kept_tells_of_its_runs() -> None:
    assert [(len(told), kept) for told, kept in (runs(), runs())] == [(1, False), (1, True)]


def test_another_bound_is_other_code() -> None:
    assert [runs(bound)[1] for bound in (8, 9, 8)] == [False, False, True]


def test_what_other_sources_made_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    runs()
    monkeypatch.setattr(sources, "digest", lambda: "of other lowerings")
    assert not runs()[1]


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no_such_option"):
        Inductor({"no_such_option": True})
