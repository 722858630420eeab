"""What the code that Inductor generates for a processor is made of, so that its kernels can be recorded."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from qfpass.upstream import generated_code, inductor
from qfpass.upstream.generated_code import KernelCode


def generated_for(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> inductor.Generated:
    """The code of a function's graph."""
    kept = list[inductor.Generated]()

    def keep(generated: inductor.Generated) -> inductor.Generated:
        kept.append(generated)
        return generated

    torch.compiler.reset()
    backend = inductor.backend_for_replays.function({"size_asserts": False}, keep)
    assert backend is not None
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    (generated,) = kept
    return generated


def test_code_of_kernels_and_products_is_known() -> None:
    """It makes memory, calls C++ kernels, and products that write to `out`; all of these can be noted."""
    x = torch.randn(3, 3)
    code = generated_code.code_of.function(generated_for(lambda x: (x @ x).relu().sum(1), x))
    assert isinstance(code, KernelCode) and len(code.kernels) == 1
    noted = list[tuple[bool, set[str]]]()

    def note(function: Callable[..., Any], gives_out: bool) -> Callable[..., Any]:
        def noting(*arguments: Any, **named: Any) -> Any:
            noted.append((gives_out, set(named)))
            return function(*arguments, **named)

        return noting

    inputs: list[Any] = [x]
    (out,) = code.with_calls(note)(inputs)
    torch.testing.assert_close(out, (x @ x).relu().sum(1))
    assert noted == [(True, {"out"}), (False, set())]


@pytest.mark.parametrize(
    "function", [torch.linalg.inv, lambda x: (torch.rand_like(x) < 2) * x], ids=["an operator", "a seed"]
)
def test_code_of_anything_else_says_what(function: Callable[..., torch.Tensor]) -> None:
    why = generated_code.code_of.function(generated_for(function, torch.eye(3)))
    assert isinstance(why, str) and why.startswith("generated code uses ")


def test_code_of_no_generated_code_says_so() -> None:
    def generated(inputs: list[Any]) -> Sequence[Any]:
        return inputs

    assert generated_code.code_of(generated) == "generated code is no Python function"
