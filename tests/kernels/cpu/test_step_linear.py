"""The operator's loops, compiled by Inductor, against products in float64; and its own contract."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from qfpass.kernels.cpu.step_linear.op import DTYPES, few_token_linears, fits
from qfpass.kernels.cpu.tokens import MOST


@pytest.fixture(scope="module", autouse=True)
def lowering() -> None:
    from qfpass.kernels.cpu import lowerings

    lowerings.register()


def operands(
    columns: int, rows: Sequence[int], dtype: torch.dtype = torch.float32, tokens: int = 1
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens and weights of so many rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, columns, generator=generator)
    return x, [torch.randn(n, columns, generator=generator).to(dtype) for n in rows]


def wanted(token: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(token.double() @ weight.double().mT).float() for weight in weights], -1)


def compiled(function: Any, *operands: Any) -> Any:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        return torch.compile(function, fullgraph=True, dynamic=False)(*operands)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("columns", "tokens"), [(3, 5), (16, 1), (40, 7), (64, MOST), (167, 1), (167, 11)])
def test_loops_are_the_products(columns: int, tokens: int, dtype: torch.dtype) -> None:
    """Weights that leave rows of four parts, columns that leave numbers of lines and of vectors."""
    token, weights = operands(columns, (24, 7, 1), dtype, tokens)
    out = compiled(lambda x, *weights: few_token_linears(2 * x, list(weights)) + 1, token, *weights)
    torch.testing.assert_close(out, 2 * wanted(token, weights) + 1, rtol=2e-5, atol=2e-5)


def test_tokens_of_bfloat16_are_multiplied_exactly() -> None:
    tokens, weights = operands(167, (9, 4), torch.bfloat16, tokens=7)
    tokens = tokens.bfloat16()
    out = compiled(lambda x, *weights: few_token_linears(x, list(weights)), tokens, *weights)
    torch.testing.assert_close(out, wanted(tokens, weights), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_together_are_those_alone_to_the_last_bit(dtype: torch.dtype) -> None:
    """So rows of a batch get what each would get by itself."""
    tokens, weights = operands(77, (9, 4), dtype, MOST)
    tokens = tokens.to(dtype)
    together = compiled(lambda x, *weights: few_token_linears(x, list(weights)), tokens, *weights)
    alone = torch.compile(lambda x, *weights: few_token_linears(x, list(weights)), dynamic=False)
    for token, products in zip(tokens, together, strict=True):
        assert torch.equal(alone(token[None], *weights)[0], products)


def test_weights_may_be_parts_of_others_and_alike() -> None:
    """Every other row, the first columns, one weight twice."""
    token, (large,) = operands(32, (20,))
    narrow = torch.cat([large, large], 1)[:, :32]
    weights = [large[::2], narrow, large, large]
    assert fits(weights)
    out = compiled(lambda x, *weights: few_token_linears(x, list(weights)), token, *weights)
    torch.testing.assert_close(out, wanted(token, weights), rtol=2e-5, atol=2e-5)


def test_a_weight_may_be_computed() -> None:
    """In the same graph, where Inductor chooses how it lies."""
    token, (weight,) = operands(32, (12,))

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return few_token_linears(x, [(weight.mT * 2).mT, weight.softmax(1)])

    out = compiled(product, token, weight.mT.contiguous().mT)
    torch.testing.assert_close(out, wanted(token, [2 * weight, weight.softmax(1)]), rtol=2e-5, atol=2e-5)


def test_a_token_may_have_gaps() -> None:
    """Its last dimension has a stride of 2, though one of size 1 has a stride of 1."""
    _, weights = operands(32, (6,))
    values = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    out = compiled(lambda x, w: few_token_linears(x[::2].mT, [w]), values, *weights)
    torch.testing.assert_close(out, wanted(values[::2].mT, weights), rtol=2e-5, atol=2e-5)


def test_the_loops_are_what_inductor_runs() -> None:
    from torch._inductor.utils import run_and_get_code

    token, weights = operands(32, (8,))
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        function = torch.compile(lambda x, w: few_token_linears(x, [w]), fullgraph=True)
        _, codes = run_and_get_code(function, token, *weights)
    assert any("few_token_linears_loops" in code or "products<TILE" in code for code in codes)
    assert not any("torch.ops.qfpass.few_token_linears.default(" in code for code in codes)


def test_operator() -> None:
    token, weights = operands(32, (8, 3), tokens=2)
    torch.library.opcheck(few_token_linears, (token, weights))


def test_fits_rows_of_floats() -> None:
    _, (weight,) = operands(32, (8,))
    assert fits([weight, weight.bfloat16(), weight[::2], weight[:, :5]])
    assert not fits([weight, weight.double()]) and not fits([weight.mT])
    assert not fits([weight[0]]) and not fits([weight.to("meta")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_kernel_serves_any_number_of_tokens(dtype: torch.dtype) -> None:
    counter = CompileCounterWithBackend("inductor")
    product = torch.compile(
        lambda x, w: few_token_linears(x, [w]), backend=counter, fullgraph=True, dynamic=True
    )
    _, (weight,) = operands(40, (9,), dtype)
    for tokens in (2, 5, MOST, 7, 3, 13):
        x, _ = operands(40, (), tokens=tokens)
        torch.testing.assert_close(product(x, weight), wanted(x, [weight]), rtol=2e-5, atol=2e-5)
    assert counter.frame_count == 1
