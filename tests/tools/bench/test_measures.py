"""Decode, chunks and prompts on a tiny model: every figure is there, in its unit, with its bound."""

from typing import Any

import pytest
import torch

from qfpass.tools.bench.prefill import CHUNK, long_prefill
from qfpass.tools.bench.record import Figure
from qfpass.tools.bench.run import MEASURES, Measurements, Workload
from qfpass.tools.bench.setup import Setup

SIZES = Workload(
    tokens=(20, 60), static=(60,), slots=(16, 24), batches=(1, 2), batch_tokens=20, whole=(30,),
    long=(CHUNK,), rounds=2, seconds=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(setup: Setup) -> Measurements:
    return Measurements(setup, SIZES)


def places(figures: list[Figure]) -> set[tuple[Any, ...]]:
    return {(f.contender, f.tokens, f.batch) for f in figures if f.unit == "ms"}


def test_decode_has_every_contender_at_every_point(run: Measurements) -> None:
    figures = list(run.decode())
    names = ["DynamicCache, eager", "DynamicCache, torch.compile", "qfpass, ratio 1", "qfpass, 16 slots"]
    names.append("qfpass, 16 slots without eviction")
    expected = {(name, n, 1) for name in names for n in (20, 60)}
    expected |= {(name, 20, 2) for name in names if name not in names[1:3]}
    assert places(figures) == expected | {("StaticCache, torch.compile", 60, 1)}
    steps = [f for f in figures if f.unit == "ms"]
    assert all(f.lower <= f.value <= f.upper and f.samples == 2 and f.bound > 0 for f in steps)
    full = {f.tokens: f.bound for f in steps if f.contender == names[0] and f.batch == 1}
    bounded = {f.tokens: f.bound for f in steps if f.contender == "qfpass, 16 slots" and f.batch == 1}
    assert len(full) == len(bounded) == 2
    assert {f.slots for f in steps} == {None, 16}
    assert len([f for f in figures if f.unit == "GB/s"]) == 3


def test_steady_has_every_size_over_all_contexts(run: Measurements) -> None:
    figures = list(run.steady())
    names = ("qfpass, 16 slots", "qfpass, 16 slots without eviction", "qfpass, 24 slots")
    assert places(figures) == {(name, 60, 1) for name in names}
    (speed,) = (f for f in figures if f.unit == "GB/s")
    (step,) = (f for f in figures if f.contender == names[1])
    weights = sum(p.nbytes for p in run.model.parameters())
    weights -= run.model.get_input_embeddings().weight.nbytes
    store = 16 * 4 * 2 * 2 * 2 * 8  # slots, bytes, keys and values, layers, heads, dimensions
    assert step.bound == pytest.approx((weights + store) / speed.value / 1e6)


def test_prompts_give_speed_and_time_to_the_first_token(run: Measurements) -> None:
    figures = list(run.prefill())
    for name in ("DynamicCache, eager", "qfpass, 16 slots"):
        (speed,) = (f for f in figures if f.contender == name and f.measure == "prefill")
        (time,) = (f for f in figures if f.contender == name and f.measure == "first token")
        assert (speed.unit, time.unit) == ("tokens/s", "ms")
        assert speed.value == pytest.approx(30 * 1000 / time.value)
        assert speed.lower <= speed.value <= speed.upper


def chunk(tokens: int, value: float, name: str = "a") -> Figure:
    return Figure("chunk", name, "float32", 1, tokens, "ms", value)


def test_long_prompts_sum_their_chunks() -> None:
    # 10 ms and 2 more with each chunk: 10 + 12 + 14 + 16.
    figures = [chunk(0, 10.0), chunk(3 * CHUNK, 16.0), chunk(0, 1.0, "too short")]
    (speed,) = long_prefill(figures, 4 * CHUNK)
    assert speed.value == pytest.approx(4 * CHUNK / 0.052)
    assert (speed.contender, speed.unit, speed.tokens) == ("a", "tokens/s", 4 * CHUNK)
    assert long_prefill(figures, 9 * CHUNK) == []


def test_recompiling_without_end_is_an_error_while_it_is_measured(run: Measurements) -> None:
    figures = MEASURES["steady"](run)
    next(figures)
    assert torch._dynamo.config.fail_on_recompile_limit_hit
    list(figures)
    assert not torch._dynamo.config.fail_on_recompile_limit_hit
