"""What Inductor promises of its options, of a hook around what it generates, and of operators' lowerings.

Products of matrices are a library's, so that most of this compiles no C++.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qfpass.upstream import inductor
from qfpass.upstream.entry import UpstreamWarning

MakeBackend = Callable[..., inductor.Backend | None]


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Runs:
    """The inputs of each run of generated code."""

    def __init__(self) -> None:
        self.inputs = list[tuple[Any, ...]]()

    def wrap(self, generated: inductor.Generated) -> inductor.Generated:
        def noting(inputs: list[Any]) -> Sequence[Any]:
            self.inputs.append(tuple(inputs))
            outputs = generated(inputs)
            assert inputs == [], "generated code lets go of its inputs"
            return outputs

        return noting


@torch.no_grad()
def check_each_run_goes_through(make: MakeBackend) -> None:
    """Of what was just compiled, and of what the caches kept of it."""
    x, y = torch.randn(2, 3, 3)
    for _ in range(2):
        torch.compiler.reset()
        runs = Runs()
        backend = make({"size_asserts": False}, runs.wrap)
        assert backend is not None and backend.options == {"size_asserts": False}
        compiled = torch.compile(torch.mm, backend=backend, fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(x, y), x @ y)
        assert [set(map(id, inputs)) for inputs in runs.inputs] == [{id(x), id(y)}] * 2


def test_backend_for_pieces_puts_each_run_through() -> None:
    check_each_run_goes_through(inductor.backend_for_pieces.function)


def test_backend_for_replays_puts_each_run_through() -> None:
    check_each_run_goes_through(inductor.backend_for_replays.function)


def test_backend_for_replays_has_caches_of_its_own() -> None:
    """By their tag, without which Inductor would find what was compiled with other lowerings."""
    x = torch.randn(3, 3)
    tags = list[str]()

    def compile(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        with inductor.cache_key_tagged("ours"):
            tags.append(torch.compiler.config.cache_key_tag)  # type: ignore[attr-defined]
            backend = inductor.backend_for_replays.function({}, lambda generated: generated)
            assert backend is not None
            return backend(graph, examples)

    before = torch.compiler.config.cache_key_tag  # type: ignore[attr-defined]
    torch.compile(torch.mm, backend=compile)(x, x)
    assert tags == [f"{before} ours".strip()]
    assert torch.compiler.config.cache_key_tag == before  # type: ignore[attr-defined]


def test_options_of_mode_are_known_options() -> None:
    chosen = inductor.options_of_mode("max-autotune")
    assert chosen["max_autotune"] is True and chosen["triton.cudagraphs"] is True
    assert inductor.known_options(chosen) == chosen
    with pytest.raises(RuntimeError, match="no-such-mode"):
        inductor.options_of_mode("no-such-mode")


def test_torch_compile_refuses_options_that_it_does_not_know() -> None:
    """Of our own they are left out."""
    chosen = {"size_asserts": False, "no_such_option": 1, "max_autotune": "a word"}
    assert inductor.known_options(chosen) == {"size_asserts": False}
    with pytest.raises(RuntimeError, match="Unexpected optimization option no_such_option"):
        inductor.refuse_unknown(chosen)


@torch.library.custom_op("qfpass_test::squared", mutates_args=())
def squared(x: torch.Tensor) -> torch.Tensor:
    """An operator that Inductor knows nothing of."""
    return x @ x


@squared.register_fake
def _fake(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def compiled_squared(x: torch.Tensor) -> torch.Tensor:
    with torch._inductor.config.patch(force_disable_caches=True):
        return torch.compile(lambda x: squared(x), fullgraph=True)(x)


@pytest.fixture
def _not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.lower_to_own_loops, "failure", None)


@pytest.mark.usefixtures("_not_failed")
def test_lower_to_own_loops_gives_operators_other_code() -> None:
    from torch._inductor.lowering import lowerings

    asked = list[Any]()

    def lower(x: Any) -> Any:
        asked.append(x)
        return lowerings[torch.ops.aten.mm.default](x, x)

    operator = torch.ops.qfpass_test.squared.default
    assert inductor.lower_to_own_loops.function(lambda: {operator: lower})
    x = torch.randn(3, 3)
    torch.testing.assert_close(compiled_squared(x), x @ x)
    assert len(asked) == 1


@pytest.mark.usefixtures("_not_failed")
def test_lower_to_own_loops_calls_the_operator_where_that_fails() -> None:
    def fail(x: Any) -> Any:
        raise TypeError("another template")

    operator = torch.ops.qfpass_test.squared.default
    assert inductor.lower_to_own_loops.function(lambda: {operator: fail})
    x = torch.randn(3, 3)
    with pytest.warns(UpstreamWarning, match="another template"):
        out = compiled_squared(x)
    torch.testing.assert_close(out, x @ x)
    assert inductor.lower_to_own_loops.failure is not None
    torch.compiler.reset()
    torch.testing.assert_close(compiled_squared(x), x @ x)
