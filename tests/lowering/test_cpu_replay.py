"""Recorded kernels do again what they did, and what else code does is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qfpass.config import Config
from qfpass.lowering import cpu_replay
from qfpass.lowering.cpu_replay import RecordedKernels
from qfpass.lowering.lower import compiled_by_inductor

Call = Callable[..., torch.Tensor]


def lowered(function: Call) -> Call:
    return torch.no_grad()(compiled_by_inductor(fx.symbolic_trace(function), Config()))


def test_kernels_read_what_lies_where_their_inputs_lay() -> None:
    weight, held = torch.randn(8), torch.zeros(8)

    def step(x: torch.Tensor, weight: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        held.add_(x)
        return (x * weight).softmax(0) + held.sum()

    call = lowered(step)
    call(torch.zeros(8), weight, held)
    x = torch.randn(8)
    recorded = RecordedKernels(lambda x: call(x, weight, held), [x])
    assert recorded.is_replayable
    torch.testing.assert_close(recorded.first(), (x * weight).softmax(0) + x.sum())
    weight.mul_(2)
    for seed in range(3):
        y, before = torch.randn(8, generator=torch.Generator().manual_seed(seed)), held.clone()
        out = recorded.replay([y])
        torch.testing.assert_close(held, before + y)
        torch.testing.assert_close(out, (y * weight).softmax(0) + held.sum())


def test_products_of_a_library_are_recorded() -> None:
    x, y = torch.randn(2, 3, 3)
    call = lowered(lambda x: torch.addmm(x, x, x) + (x[None] @ x[None]).relu()[0])
    call(x)
    recorded = RecordedKernels(call, [x])
    assert recorded.is_replayable
    torch.testing.assert_close(recorded.first(), torch.addmm(x, x, x) + (x @ x).relu())
    torch.testing.assert_close(recorded.replay([y]), torch.addmm(y, y, y) + (y @ y).relu())


@pytest.mark.parametrize(
    "function",
    [lambda x: torch.linalg.inv(x + 9), lambda x: (torch.rand_like(x) < 2) * x],
    ids=["an operator without a kernel", "a seed"],
)
def test_code_that_does_more_than_call_kernels_is_not_replayed(function: Call) -> None:
    x = torch.eye(3)
    recorded = RecordedKernels(lowered(function), [x])
    assert not recorded.is_replayable and "generated code uses" in str(recorded.why_not)
    torch.testing.assert_close(recorded.first(), function(x))


def test_a_product_that_makes_its_output_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Products:
        def __init__(self, call: Any, holder: Any) -> None:
            self.call = call

        def with_calls(self, note: Any) -> Any:
            return lambda inputs: [note(torch.neg, True)(*inputs)]

    monkeypatch.setattr(cpu_replay, "code_of", lambda generated: Products(None, None))
    recorded = RecordedKernels(lambda x: cpu_replay.run_and_record(list, [x])[0], [torch.ones(2)])
    assert (recorded.is_replayable, recorded.why_not) == (False, "a product makes its own output")
    torch.testing.assert_close(recorded.first(), -torch.ones(2))


def test_what_runs_no_generated_code_is_not_replayed() -> None:
    recorded = RecordedKernels(torch.neg, [torch.ones(2)])
    assert (recorded.is_replayable, recorded.why_not) == (False, "no generated code ran")


def test_after_a_failure_nothing_is_recorded_any_more() -> None:
    def fail(x: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordedKernels(fail, [torch.ones(2)])
    call, x = lowered(lambda x: x + 1), torch.ones(2)
    call(x)
    assert RecordedKernels(lambda x: call(x), [x]).is_replayable
