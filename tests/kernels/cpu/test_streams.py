"""Our loops on the vectors of other processors than this one: what they widen without masks."""

import pytest
import torch

from qfpass.kernels.cpu.grouped_linear.op import grouped_linears, pack
from qfpass.kernels.cpu.step_attention.attend import attend_step, attend_written_out
from qfpass.kernels.cpu.step_linear.op import DTYPES, few_token_linears

BITS = 256


@pytest.fixture(scope="module", autouse=True)
def narrower_vectors() -> object:
    """Inductor with vectors of 256 bits."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    from qfpass.kernels.cpu import lowerings

    if BITS not in [isa.bit_width() for isa in valid_vec_isa_list()]:
        pytest.skip(f"this processor has no vectors of {BITS} bits")
    lowerings.register()
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.simdlen": BITS, "force_disable_caches": True}):
        yield
    torch._dynamo.reset()


def compiled(function: object, *operands: object) -> object:
    return torch.compile(function, fullgraph=True, dynamic=False)(*operands)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_few_tokens(dtype: torch.dtype, tokens: int) -> None:
    token, weight = random(tokens, 77), random(9, 77).to(dtype)
    out = compiled(lambda x, w: few_token_linears(x, [w]), token, weight)
    torch.testing.assert_close(out, token @ weight.float().mT, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_with_codes(bits: int, has_zeros: bool) -> None:
    """Every one of them."""
    half = 2 ** (bits - 1)
    codes = torch.arange(-half, half, dtype=torch.int8).repeat(256 // (2 * half)).view(4, 64)
    zeros = [random(4, 2).round() if has_zeros else None]
    operands = [pack(codes) if bits == 4 else codes], [random(4, 2).abs() / half], zeros
    token = random(5, 64)
    wanted = grouped_linears(token, *operands)
    torch.testing.assert_close(compiled(grouped_linears, token, *operands), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_attention_of_one_query(dtype: torch.dtype) -> None:
    """Of eight bits, all codes from -127 on."""
    query, key, value = random(1, 4, 1, 16), random(1, 2, 17, 16), random(1, 2, 17, 32)
    scales = None
    if dtype == torch.int8:
        key, value = (torch.arange(x.numel()).view(x.shape) % 255 - 127 for x in (key, value))
        scales = random(1, 2, 17).abs() / 100, random(1, 2, 17) / 100
    key, value = key.to(dtype), value.to(dtype)

    def attend(*operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_step(*operands[:3], scale=0.25, scales=operands[3:] or None)

    out = compiled(attend, query, key, value, *(scales or ()))
    wanted = attend_written_out(query, key, value, scale=0.25, scales=scales)
    torch.testing.assert_close(out, wanted, rtol=2e-5, atol=2e-5)
