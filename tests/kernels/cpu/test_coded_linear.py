"""Codes decode to exactly the weight that they were made from, and the loops over them are its product."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from qfpass.kernels.cpu.coded_linear.op import BLOCK, LARGEST, Codes, coded_linear, decode, encode


@pytest.fixture(scope="module", autouse=True)
def lowering() -> None:
    from qfpass.kernels.cpu import lowerings

    lowerings.register()


def quantised(rows: int, columns: int, largest: int, symmetric: bool, seed: int = 0) -> torch.Tensor:
    """Blocks of steps, and of lows if not symmetric, in half precision, as the usual formats have them."""
    generator = torch.Generator().manual_seed(seed)
    blocks = (rows, columns // BLOCK, 1)
    codes = torch.randint(largest + 1, (rows, columns // BLOCK, BLOCK), generator=generator).float()
    steps = (torch.rand(blocks, generator=generator) + 0.1).half().float() / 64
    lows = -(steps * largest * torch.rand(blocks, generator=generator)).clamp(min=steps).half().float()
    if symmetric:
        lows = -steps * (largest // 2)
    return (codes * steps + lows).view(rows, columns)


@given(
    st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 15, LARGEST]),
    st.booleans(),
)  # fmt: skip
def test_codes_decode_to_the_same_numbers(
    seed: int, rows: int, blocks: int, largest: int, symmetric: bool
) -> None:
    weight = quantised(rows, blocks * BLOCK, largest, symmetric, seed)
    made = encode(weight)
    assert made is not None and made.codes.dtype == torch.uint8
    assert made.codes.shape == weight.shape and made.steps.shape == made.lows.shape == (rows, blocks)
    assert torch.equal(decode(*made), weight)


def test_codes_are_found_though_few_levels_are_used() -> None:
    """Of levels 0, 6, 10 and 15 no two neighbours are a step apart."""
    levels = torch.tensor([0.0, 6.0, 10.0, 15.0]).repeat(BLOCK // 4)
    made = encode((0.375 * levels - 2.5)[None])
    assert made is not None and made.steps.item() == 0.375
    assert made.codes[0].tolist() == levels.tolist()


def test_blocks_of_one_number_have_codes() -> None:
    weight = torch.tensor([[0.0] * BLOCK, [-0.7] * BLOCK])
    made = encode(weight)
    assert made is not None and torch.equal(decode(*made), weight)


@pytest.mark.parametrize("spoiled", [0, 40, 95])
def test_one_number_more_and_there_are_none(spoiled: int) -> None:
    weight = quantised(3, BLOCK, 15, symmetric=True)
    weight.view(-1)[spoiled] += 1e-4
    assert encode(weight) is None


def test_no_codes_for_random_weights_other_dtypes_and_broken_blocks() -> None:
    weight = quantised(4, 2 * BLOCK, 15, symmetric=True)
    assert encode(torch.randn(4, 2 * BLOCK)) is None
    assert encode(weight.double()) is None
    assert encode(weight[:, : BLOCK + 8]) is None
    assert encode(torch.full((1, BLOCK), torch.nan)) is None
    assert encode(torch.tensor([[torch.inf] + [0.0] * (BLOCK - 1)])) is None


@pytest.mark.parametrize("rows", [1, 3, 4, 30])
@pytest.mark.parametrize(("columns", "tokens"), [(BLOCK, 16), (7 * BLOCK, 1), (7 * BLOCK, 5)])
def test_loops_are_the_weights_product(rows: int, columns: int, tokens: int) -> None:
    """Rows that four parts leave, and something that reads the output and makes the input."""
    weight = quantised(rows, columns, LARGEST, symmetric=False)
    codes = encode(weight)
    assert codes is not None
    token = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1))

    def product(x: torch.Tensor, *codes: torch.Tensor) -> torch.Tensor:
        return coded_linear(2 * x, *codes) + 1

    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        out = torch.compile(product, fullgraph=True, dynamic=False)(token, *codes)
    torch.testing.assert_close(out, 2 * token @ weight.mT + 1)


def test_the_loops_read_an_input_with_gaps() -> None:
    """Its last dimension has a stride of 2, though one of size 1 has a stride of 1."""
    codes = encode(quantised(6, BLOCK, 15, symmetric=True))
    assert codes is not None
    values = torch.randn(2 * BLOCK, 1, generator=torch.Generator().manual_seed(0))

    def product(x: torch.Tensor, *codes: torch.Tensor) -> torch.Tensor:
        return coded_linear(x[::2].mT, *codes)

    with torch._inductor.config.patch(force_disable_caches=True):
        out = torch.compile(product, fullgraph=True, dynamic=False)(values, *codes)
    torch.testing.assert_close(out, product(values, *codes))


def test_the_loops_are_what_inductor_runs() -> None:
    from torch._inductor.utils import run_and_get_code

    codes = encode(quantised(8, BLOCK, 15, symmetric=True))
    assert codes is not None
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        compiled = torch.compile(lambda *operands: coded_linear(*operands), fullgraph=True)
        _, made = run_and_get_code(compiled, torch.randn(1, BLOCK), *codes)
    assert any("coded_linear_loops" in code or "products<TILE" in code for code in made)
    assert not any("torch.ops.qfpass.coded_linear.default(" in code for code in made)


def test_operator() -> None:
    codes = encode(quantised(6, 2 * BLOCK, 15, symmetric=False))
    assert isinstance(codes, Codes)
    torch.library.opcheck(coded_linear, (torch.randn(3, 2 * BLOCK), *codes))
