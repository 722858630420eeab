"""The loops of weights in groups, compiled by Inductor, against products in float64; how codes are packed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from qfpass.kernels.cpu.grouped_linear.op import UNIT, ZERO, dequantised, fits, grouped_linears, pack
from qfpass.kernels.cpu.tokens import MOST


@pytest.fixture(scope="module", autouse=True)
def lowering() -> None:
    from qfpass.kernels.cpu import lowerings

    lowerings.register()


class Weight(NamedTuple):
    """A weight's operands, and its numbers [N, K] in float64."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    numbers: torch.Tensor


def weight(
    rows: int,
    columns: int,
    group: int,
    bits: int = 4,
    has_zeros: bool = False,
    seed: int = 0,
    scales_dtype: torch.dtype = torch.float32,
) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, columns), generator=generator).to(torch.int8)
    scales = (torch.rand(rows, columns // group, generator=generator) + 0.1).to(scales_dtype)
    zeros = torch.randint(-half, half, scales.shape, generator=generator).float()
    groups = codes.double().unflatten(1, (-1, group)) - (zeros.double()[..., None] if has_zeros else 0)
    numbers = (groups * scales.double()[..., None]).flatten(1)
    held = pack(codes) if bits == 4 else codes
    return Weight(held, scales, (zeros + (ZERO if bits == 4 else 0)) if has_zeros else None, numbers)


def products(x: torch.Tensor, weights: Sequence[Weight]) -> torch.Tensor:
    return grouped_linears(
        x, [w.codes for w in weights], [w.scales for w in weights], [w.zeros for w in weights]
    )


def compiled(function: Any, *operands: Any) -> Any:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        return torch.compile(function, fullgraph=True, dynamic=False)(*operands)


def tokens(count: int, columns: int) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 5, MOST])
def test_loops_are_the_products(count: int) -> None:
    """Rows that four parts leave, groups of several sizes, four and eight bits, with and without zeros."""
    columns = 6 * UNIT
    weights = [
        weight(9, columns, UNIT), weight(4, columns, UNIT, has_zeros=True), weight(3, columns, 2 * UNIT),
        weight(7, columns, columns, bits=8), weight(8, columns, UNIT, bits=8, has_zeros=True),
    ]  # fmt: skip
    x = tokens(count, columns)
    out = compiled(lambda x, weights: products(2 * x, weights) + 1, x, weights)
    wanted = torch.cat([2 * x.double() @ each.numbers.mT + 1 for each in weights], -1)
    torch.testing.assert_close(out, wanted.float(), rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scales_are_read_in_their_own_dtype(dtype: torch.dtype) -> None:
    """As many groups as fill vectors, and more; the last row's end where memory does."""
    for groups in (1, 16, 18):
        weights = [weight(6, groups * UNIT, UNIT, bits, scales_dtype=dtype) for bits in (4, 8)]
        x = tokens(2, groups * UNIT)
        wanted = torch.cat([x.double() @ each.numbers.mT for each in weights], -1)
        torch.testing.assert_close(compiled(products, x, weights), wanted.float(), rtol=2e-5, atol=2e-3)


def test_tokens_together_are_those_alone_to_the_last_bit() -> None:
    """So rows of a batch get what each would get by itself."""
    x, weights = tokens(MOST, 3 * UNIT), [weight(9, 3 * UNIT, UNIT), weight(4, 3 * UNIT, UNIT, 8, True)]
    together = compiled(products, x, weights)
    alone = torch.compile(lambda x, weights: products(x, weights), dynamic=False)
    for token, own in zip(x, together, strict=True):
        assert torch.equal(alone(token[None], weights)[0], own)


@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 3), st.sampled_from([4, 8]), st.booleans())
def test_decoded_numbers_are_exact(seed: int, rows: int, groups: int, bits: int, has_zeros: bool) -> None:
    """The weight in float32, rounded once; packed codes take half a byte each."""
    made = weight(rows, groups * UNIT, UNIT, bits, has_zeros, seed)
    assert made.codes.nbytes == rows * groups * UNIT * bits // 8
    assert torch.equal(dequantised(made.codes, made.scales, made.zeros), made.numbers.float())


def test_the_loops_are_what_inductor_runs() -> None:
    from torch._inductor.utils import run_and_get_code

    weights = [weight(8, UNIT, UNIT)]
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        function = torch.compile(lambda x: products(x, weights), fullgraph=True)
        _, made = run_and_get_code(function, tokens(1, UNIT))
    assert any("grouped_linears_loops" in code or "products<SIZE" in code for code in made)
    assert not any("torch.ops.qfpass.grouped_linears.default(" in code for code in made)


def test_what_the_loops_take() -> None:
    codes, scales = torch.zeros(6, 2 * UNIT, dtype=torch.int8), torch.ones(6, 4)
    assert fits(codes, scales[:, :2]) and fits(codes, scales[:, :1])
    assert not fits(codes, scales) and not fits(codes, scales[:5, :1]) and not fits(codes, scales[:, 0])
    assert not fits(codes, scales[:, :2].double())
    assert not fits(codes.int(), scales[:, :2]) and not fits(codes.mT, torch.ones(64, 1))


def test_operator() -> None:
    made = [weight(6, 2 * UNIT, UNIT), weight(3, 2 * UNIT, UNIT, 8, True)]
    operands = [[each[i] for each in made] for i in range(3)]
    torch.library.opcheck(grouped_linears, (tokens(3, 2 * UNIT), *operands))
