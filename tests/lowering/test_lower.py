"""torch.compile is asked for what the user asked, with fewer checks, and still sees weights that change."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from bounded import CONTEXT, llama
from decoders import decoder
from torch import nn

import qfpass
from qfpass.config import Config
from qfpass.errors import QFPassError
from qfpass.kernels.cpu import lowerings
from qfpass.lowering.lower import lower
from qfpass.switches import Switches
from qfpass.upstream.entry import UpstreamWarning
from qfpass.upstream.inductor import lower_to_own_loops

Asked = dict[str, Any]
Guard = namedtuple("Guard", ("guard_type", "name"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """The arguments of every call of torch.compile, which compiles nothing."""
    calls: list[Asked] = []

    def record(function: Any, **arguments: Any) -> Any:
        if "fullgraph" in arguments:  # else only options are asked about
            calls.append(arguments)
        return function

    monkeypatch.setattr(torch, "compile", record)
    return calls


def lowered(backend: Any = "inductor", switches: Switches = Switches(), **compile_options: Any) -> None:
    module = torch.fx.symbolic_trace(nn.Identity())
    lower(module, Config(backend=backend, switches=switches, compile_options=compile_options))


def test_a_mode_is_spelled_out(asked: list[Asked]) -> None:
    lowered(mode="max-autotune-no-cudagraphs")
    (call,) = asked
    assert "mode" not in call
    assert call["backend"].options["max_autotune"] is True
    assert call["backend"].options["size_asserts"] is False


def test_the_users_options_come_last(asked: list[Asked]) -> None:
    lowered(options={"size_asserts": True, "freezing": True})
    (call,) = asked
    assert call["backend"].options["size_asserts"] is True
    assert call["backend"].options["freezing"] is True


@pytest.mark.parametrize("asking", [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}])
def test_inductor_makes_no_cuda_graphs(asking: Any, asked: list[Asked]) -> None:
    """They would be in ours."""
    lowered(**asking)
    (call,) = asked
    assert call["backend"].options["triton.cudagraphs"] is False


def test_an_option_that_inductor_does_not_have_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected optimization option no_such_option"):
        lowered(options={"no_such_option": 1})


def test_without_replays_inductor_is_torch_compiles_own(asked: list[Asked]) -> None:
    lowered(options={"freezing": True}, switches=Switches(replay=False))
    (call,) = asked
    assert call["backend"] == "inductor"
    chosen = ("freezing", "size_asserts", "triton.cudagraphs")
    assert [call["options"][name] for name in chosen] == [True, False, False]


def test_other_backends_are_given_what_the_user_gave(asked: list[Asked]) -> None:
    lowered("eager", mode="any")
    assert asked == [{"fullgraph": True, "backend": "eager", "mode": "any"}]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_graphs_within_a_graph_have_their_python(backend: str) -> None:
    inner = torch.fx.symbolic_trace(nn.ReLU())
    graph = torch.fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    outer = torch.fx.GraphModule({"inner": inner}, graph)
    x = torch.arange(-2.0, 3)
    torch.testing.assert_close(lower(outer, Config(backend=backend))(x), x.relu())


def test_loops_whose_source_does_not_compile_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """at::vec, which they are written with, may change; the operator is called instead."""
    monkeypatch.setattr(lower_to_own_loops, "failure", None)
    if not lowerings.register():
        pytest.skip("Inductor knows no vector instructions of this processor")
    from qfpass.kernels.cpu.step_linear.lowering import FewTokenLinears

    monkeypatch.setattr(FewTokenLinears, "source", "no {{ definition }} of C++")
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    graph.output(graph.call_function(torch.ops.qfpass.few_token_linears.default, (x, [weight])))
    call = lower(torch.fx.GraphModule(nn.Module(), graph), Config())
    x, weight = torch.randn(1, 16), torch.randn(4, 16)
    with (
        torch._inductor.config.patch(force_disable_caches=True),
        pytest.warns(UpstreamWarning, match=r"its C\+\+ doesn't compile"),
    ):
        out = call(x, weight)
    torch.testing.assert_close(out, x @ weight.mT)


def test_modes_stay_as_they_are(asked: list[Asked]) -> None:
    before = dict(torch._inductor.list_mode_options("lite"))
    lowered(mode="lite", options=None)
    assert torch._inductor.list_mode_options("lite") == before


def test_weights_of_another_dtype_are_noticed() -> None:
    original, ids = decoder(), torch.arange(20)[None]
    compiled = qfpass.compile(original, budget=16, score="recency", context_length=CONTEXT, verify=False)
    compiled(ids)
    original.double()  # in place, behind the compiled model's back
    with pytest.raises(QFPassError, match=r"was torch\.float32 .* and is torch\.float64"):
        compiled(ids)


def test_new_values_of_weights_are_read() -> None:
    """In place, and in another place."""
    original, ids = llama(), torch.arange(20)[None]
    compiled = qfpass.compile(original, budget=16, score="recency", context_length=CONTEXT, verify=False)
    before = compiled(ids).logits
    graphs = qfpass.report(compiled).graphs_compiled
    weight = original.lm_head.weight
    weight.data.mul_(2)
    torch.testing.assert_close(compiled(ids).logits, 2 * before)
    weight.data = 2 * weight.data
    torch.testing.assert_close(compiled(ids).logits, 4 * before)
    assert qfpass.report(compiled).graphs_compiled == graphs
