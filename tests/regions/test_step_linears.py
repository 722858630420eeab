"""A few tokens' products give what the linears give; linears of one input are one call of the loops."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import FAMILIES
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import qfpass
from qfpass.kernels.cpu import lowerings
from qfpass.kernels.cpu.tokens import MOST
from qfpass.regions.outline import Outlined
from qfpass.regions.step_linears import linears, stream_weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (MOST, 1), (MOST + 1, 1)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_equal_the_linears(dtype: torch.dtype, shape: tuple[int, int], biased: bool) -> None:
    """Several of one input; of other dtypes than the loops take, the library's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 40, generator=generator).to(dtype)
    weights = [torch.randn(rows, 40, generator=generator).to(dtype) for rows in (24, 24, 7)]
    biases = [torch.full((len(weight),), 40.0, dtype=dtype) if biased else None for weight in weights]
    for out, weight, bias in zip(linears(x, weights, biases), weights, biases, strict=True):
        assert out.dtype == dtype and out.is_contiguous()
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(out, exact.to(dtype))


def test_linears_of_one_input_are_read_side_by_side() -> None:
    """Of one input whatever lies between; what computes its own weight is left alone."""
    root, graph = torch.nn.Module(), fx.Graph()
    x = graph.placeholder("x")
    outs = []
    for name in ("first", "second"):
        setattr(root, name, torch.nn.Parameter(torch.randn(6, 4)))
        product = graph.call_function(torch.ops.aten.linear.default, (x, graph.get_attr(name)))
        outs.append(graph.call_function(torch.ops.aten.relu.default, (product,)))
    computed = graph.call_function(torch.ops.aten.neg.default, (graph.get_attr("first"),))
    outs.append(graph.call_function(torch.ops.aten.linear.default, (x, computed)))
    graph.output(tuple(outs))
    body = fx.GraphModule(root, graph)
    token = torch.randn(1, 1, 4)
    wanted = body(token)
    stream_weights(Outlined(body, None, kinds=1, regions=1))
    assert [len(node.args[1]) for node in body.graph.nodes if node.target is linears] == [2, 1]
    body.graph.lint()
    torch.testing.assert_close(body(token), wanted)


def streamed(root: torch.nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A copy of the graph whose linears are replaced."""
    body = fx.GraphModule(root, copy.deepcopy(graph))
    stream_weights(Outlined(body, None, kinds=1, regions=1))
    body.graph.lint()
    return body


def test_a_weight_may_be_read_before_its_linear() -> None:
    """As a tied embedding's is, and one that two linears share."""
    root, graph = torch.nn.Module(), fx.Graph()
    root.weight = torch.nn.Parameter(torch.randn(4, 4))
    ids, weight = graph.placeholder("ids"), graph.get_attr("weight")
    x = graph.call_function(torch.ops.aten.embedding.default, (weight, ids))
    for _ in range(2):
        x = graph.call_function(torch.ops.aten.linear.default, (x, weight))
    graph.output(x)
    ids = torch.tensor([[2]])
    torch.testing.assert_close(streamed(root, graph)(ids), fx.GraphModule(root, graph)(ids))


def test_a_linear_of_a_linear_reads_its_own_input() -> None:
    """Also where the first one's weight is computed, so that it stands alone."""
    root, graph = torch.nn.Module(), fx.Graph()
    root.weight = torch.nn.Parameter(torch.randn(4, 4))
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    turned = graph.call_function(torch.ops.aten.t.default, (weight,))
    inner = graph.call_function(torch.ops.aten.linear.default, (x, turned))
    graph.output(graph.call_function(torch.ops.aten.linear.default, (inner, weight)))
    token = torch.randn(1, 1, 4)
    torch.testing.assert_close(streamed(root, graph)(token), fx.GraphModule(root, graph)(token))


def test_a_changed_input_is_another_input() -> None:
    root, graph = torch.nn.Module(), fx.Graph()
    root.weight = torch.nn.Parameter(torch.randn(4, 4))
    x = graph.placeholder("x")
    outs = [graph.call_function(torch.ops.aten.linear.default, (x, graph.get_attr("weight")))]
    graph.call_function(torch.ops.aten.mul_.Scalar, (x, 2.0))
    outs.append(graph.call_function(torch.ops.aten.linear.default, (x, graph.get_attr("weight"))))
    graph.output(tuple(outs))
    first, second = streamed(root, graph)(torch.randn(1, 1, 4))
    torch.testing.assert_close(second, 2 * first)


def outlined_linear(weight: torch.Tensor) -> Outlined:
    root, graph = torch.nn.Module(), fx.Graph()
    root.weight = torch.nn.Parameter(weight)
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.linear.default, (x, graph.get_attr("weight"))))
    return Outlined(fx.GraphModule(root, graph), None, kinds=1, regions=1)


@pytest.mark.parametrize(
    ("rows", "tokens", "streams"), [(1, 1, True), (MOST, 1, True), (MOST + 1, 1, False), (1, 5, False)]
)
def test_only_one_token_of_a_few_rows_is_streamed(rows: int, tokens: int, streams: bool) -> None:
    outlined = outlined_linear(torch.randn(24, 40))
    stream_weights(outlined)
    made = make_fx(outlined.body)(torch.randn(rows, tokens, 40))
    called = {str(n.target) for n in made.graph.nodes if n.op == "call_function"}
    assert any("few_token" in name for name in called) == streams
    assert any("mm" in name for name in called) != streams


@pytest.mark.parametrize("weight", [torch.randn(40, 24).mT, torch.randn(40)], ids=["columns", "vector"])
def test_what_the_loops_do_not_take_is_the_librarys(weight: torch.Tensor) -> None:
    token = torch.randn(1, 1, 40)
    torch.testing.assert_close(linears(token, [weight], [None]), [F.linear(token, weight)])


def targets(model: torch.nn.Module) -> set[object]:
    """What the model's graphs call."""
    return {
        node.target
        for part in model.qfpass_decoder.graphs.outlined.body.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    }


def test_other_backends_keep_the_librarys_products() -> None:
    """The loops are Inductor's."""
    model = qfpass.compile(FAMILIES["llama"](), budget=16, score="recency", backend="eager", verify=False)
    assert torch.ops.aten.linear.default in targets(model) and linears not in targets(model)


def test_processors_without_vectors_keep_the_librarys_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowerings, "has_vectors", lambda: False)
    asked = {"budget": 16, "score": "recency", "verify": False}
    model = qfpass.compile(FAMILIES["llama"](), **asked)
    assert torch.ops.aten.linear.default in targets(model) and linears not in targets(model)


def test_own_loops_may_be_turned_off() -> None:
    asked = {"budget": 16, "score": "recency", "verify": False, "switches": qfpass.Switches(own_loops=False)}
    model = qfpass.compile(FAMILIES["llama"](), **asked)
    assert torch.ops.aten.linear.default in targets(model) and linears not in targets(model)


def product_with_cast(dtype: torch.dtype, held: torch.dtype) -> tuple[torch.nn.Module, fx.Graph]:
    """The product of x [S, K] of `dtype` with a cast of a weight [N, K] that is held in another dtype."""
    root, graph = torch.nn.Module(), fx.Graph()
    root.register_buffer(
        "weight", torch.randn(24, 40, generator=torch.Generator().manual_seed(0)).mul(30).to(held)
    )
    x = graph.placeholder("x")
    turned = graph.call_function(torch.ops.aten.t.default, (graph.get_attr("weight"),))
    cast = graph.call_function(torch.ops.aten.to.dtype, (turned, dtype))
    graph.output(graph.call_function(torch.ops.aten.mm.default, (x, cast)))
    return root, graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("held", [torch.int8, torch.float32])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_weight_that_is_cast_is_read_as_it_lies(dtype: torch.dtype, held: torch.dtype, tokens: int) -> None:
    """A cast that rounds is done all the same."""
    root, graph = product_with_cast(dtype, held)
    body = streamed(root, graph)
    assert [node.args[1][0].op for node in body.graph.nodes if node.target is linears] == ["get_attr"]
    x = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(body(x), fx.GraphModule(root, graph)(x), atol=1e-3, rtol=1e-2)
    called = {str(n.target) for n in make_fx(body)(x).graph.nodes}
    is_exact = (held == torch.int8 and dtype != torch.float64) or held == dtype == torch.float32
    streams = tokens == 1 and is_exact
    assert any("few_token" in name for name in called) == streams
