"""A single token's products, written as multiply and sum, give what the linear gives."""

import pytest
import torch
import torch.nn.functional as F
from tiny import FAMILIES
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import qfpass
from qfpass.graph.one_token import linear, stream_weights
from qfpass.graph.regions import Outlined


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_linear(dtype: torch.dtype, shape: tuple[int, int], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(*shape, 40, generator=generator), torch.randn(24, 40, generator=generator)
    bias = torch.randn(24, generator=generator) if biased else None
    operands = [None if t is None else t.to(dtype) for t in (x, weight, bias)]
    out = linear(*operands)
    assert out.dtype == dtype and out.is_contiguous()
    exact = F.linear(*(None if t is None else t.double() for t in operands))
    torch.testing.assert_close(out, exact.to(dtype))


def outlined_linear(weight: torch.Tensor) -> Outlined:
    root, graph = torch.nn.Module(), fx.Graph()
    root.weight = torch.nn.Parameter(weight)
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.linear.default, (x, graph.get_attr("weight"))))
    return Outlined(fx.GraphModule(root, graph), None, kinds=1, regions=1)


def test_only_a_single_token_is_streamed() -> None:
    outlined = outlined_linear(torch.randn(24, 40))
    stream_weights(outlined)
    products: dict[int, set[str]] = {}
    for tokens in (1, 5):
        made = make_fx(outlined.body)(torch.randn(1, tokens, 40))
        products[tokens] = {str(n.target) for n in made.graph.nodes if n.op == "call_function"}
    assert any("sum" in name for name in products[1]) and not any("mm" in name for name in products[1])
    assert any("mm" in name for name in products[5]) and not any("sum" in name for name in products[5])


def test_other_backends_keep_the_librarys_products() -> None:
    """What isn't fused would write every product to memory."""
    model = qfpass.compile(FAMILIES["llama"](), budget=16, score="recency", backend="eager", verify=False)
    targets = {
        node.target
        for part in model.qfpass_decoder.outlined.body.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    }
    assert torch.ops.aten.linear.default in targets and linear not in targets
