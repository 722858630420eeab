"""Measurements in processes of their own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.errors import QFPassError
from qfpass.tools.bench.compile_time import PARTS, compile_time
from qfpass.tools.bench.compile_time import measure as compile_and_run
from qfpass.tools.bench.filters import ensure_filters
from qfpass.tools.bench.memory import held, measure, memory, peak_while, settle
from qfpass.tools.bench.profile import profile
from qfpass.tools.bench.setup import Setup

CPU = torch.device("cpu")


def test_a_peak_that_is_gone_afterwards_is_seen() -> None:
    settle()
    before, size = held(CPU), 2**26

    def work() -> None:
        torch.ones(size, dtype=torch.uint8).add_(1)

    peak = peak_while(CPU, work)
    settle()
    assert size * 0.9 < peak - before < size * 1.5
    assert held(CPU) - before < size / 2
    assert peak_while(CPU, lambda: None) - before < size / 2  # an earlier peak is forgotten


def test_memory_of_both_contenders(setup: Setup) -> None:
    figures = memory(setup, tokens=1200, ratio=40)
    assert len(figures) == 6 and {f.unit for f in figures} == {"MiB"}
    cache = {f.contender: f.value for f in figures if "cache" in f.contender.split(", ")[-1]}
    a_token = 4 * 2 * 2 * 2 * 8  # bytes, keys and values, layers, heads, dimensions
    assert cache["DynamicCache, eager, of which cache"] == pytest.approx(1200 * a_token / 2**20)
    scored, in_int8 = a_token + 2 * 2 * 8, 2 * 2 * (2 * (8 + 4) + 8)  # bytes of a slot
    assert cache["qfpass, of which cache"] == pytest.approx(30 * scored / 2**20, abs=in_int8 / 2**20)


def test_filters_are_there_before_a_process_is_measured(
    setup: Setup, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path))
    ensure_filters(setup, ratio=4, context_length=120)
    assert not any(tmp_path.iterdir()), "recency reads none"
    setup = replace(setup, score="published")
    ensure_filters(setup, ratio=4, context_length=120)
    assert any(tmp_path.glob("filters/*/qfilters.safetensors"))
    monkeypatch.setattr("qfpass.choose_filters.calibrate_captured", None)  # nothing is left to make
    setup.compile(model, ratio=4, context_length=120)


@pytest.mark.parametrize(
    "measured", [lambda setup: memory(setup, 120, 4.0), lambda setup: compile_time(setup, 16)]
)
def test_filters_are_made_first(measured: Any, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        started.append(command[2])
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(KeyboardInterrupt):
        measured(replace(setup, score="published"))
    assert started == ["qfpass.tools.bench.filters"]


def test_a_process_that_fails_says_why(setup: Setup) -> None:
    with pytest.raises(QFPassError, match=r"measures memory failed .*\n(.*\n)*.*no-such-model"):
        memory(replace(setup, model="/no-such-model"), tokens=100, ratio=2)


@pytest.mark.slow
def test_compile_time_is_told_part_by_part(setup: Setup) -> None:
    figures = compile_time(setup, slots=16)
    assert [f.contender.split(": ")[0] for f in figures] == ["cold, default, all layers"] * 3 + [
        "warm, default, all layers"
    ] * 3
    for heat in (figures[:3], figures[3:]):
        assert [f.contender.split("to ")[1] for f in heat] == list(PARTS)
        assert 0 < heat[0].value < heat[1].value < heat[2].value


def test_a_deeper_model_and_no_graph_after_warm_up(setup: Setup) -> None:
    found = compile_and_run(replace(setup, layers=3), slots=16, calls=6)
    assert found["graphs"] == 0
    assert replace(setup, layers=3).load().config.num_hidden_layers == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_memory_on_a_gpu_is_the_allocators(setup: Setup) -> None:
    found = measure(replace(setup, device="cuda"), "qfpass", tokens=1200, ratio=40)
    assert found["of which cache"] <= found["above the weights"] < 2**28
    place = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    peak = peak_while(place, lambda: torch.ones(2**24, device=place).sum())
    assert 2**26 <= peak - before < 2**27


def test_a_profile_accounts_for_the_step(setup: Setup) -> None:
    figures = profile(setup, slots=16)
    *kernels, last = (f.contender.split(" x ")[0] for f in figures)
    assert last == "all smaller" and any(name.startswith("aten::") for name in kernels)
    times = [f.value for f in figures[:-1]]
    assert times == sorted(times, reverse=True) and times[-1] > 0
