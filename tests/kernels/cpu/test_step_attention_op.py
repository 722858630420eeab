"""The operator's loops, compiled by Inductor, against softmax; and the operator's own contract."""

import pytest
import torch

from qfpass.kernels import reference
from qfpass.kernels.cpu.step_attention.attend import attend_step
from qfpass.kernels.cpu.step_attention.op import attend_one, fits
from qfpass.kernels.int4 import dequantize_int4, quantize_to_int4
from qfpass.store.int8_slots import dequantize, quantize

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SCALE = 0.3


@pytest.fixture(scope="module", autouse=True)
def lowering() -> None:
    from qfpass.kernels.cpu import lowerings

    lowerings.register()


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Of rows, kv heads, queries a head, keys, and dimensions of keys and values."""
    rows, heads, group, keys, dim, value_dim = shape
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, heads * group, 1, dim), (rows, heads, keys, dim), (rows, heads, keys, value_dim))
    return [torch.randn(each, generator=generator).to(dtype) for each in shapes]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the first keys of a store."""
    count = visible.shape[0]
    return attend_step(query, key.narrow(2, 0, count), value.narrow(2, 0, count), scale=SCALE)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 3, 3, 150, 64, 64), (2, 2, 7, 70, 32, 48), (3, 1, 1, 40, 16, 128)], ids=str
)
def test_loops_agree_with_softmax(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Groups that leave a rest of four queries, several rows, keys fewer than vectors are wide."""
    query, key, value = operands(shape, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True)
    for count in (1, 2, 17, shape[3]):
        visible = torch.empty(count)
        torch._dynamo.decorators.mark_unbacked(visible, 0)
        out, lse = compiled(query, key, value, visible)
        seen = [store[:, :, :count].float() for store in (key, value)]
        wanted, wanted_lse = reference.attend(query.float(), *seen, scale=SCALE)
        assert (out.dtype, lse.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(out.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse, wanted_lse, rtol=2e-5, atol=2e-5)


def test_loops_read_eight_bits() -> None:
    """Of two rows, the first 50 of 60 slots: scales have gaps between rows."""
    query, key, value = operands((2, 3, 2, 60, 32, 16), torch.float32)
    stores = (*quantize(key), *quantize(value))
    key_codes, key_scales, value_codes, value_scales = (store[:, :, :50] for store in stores)

    def attend_codes(query: torch.Tensor, *store: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_step(query, store[0], store[1], scale=SCALE, scales=(store[2], store[3]))

    compiled = torch.compile(attend_codes, fullgraph=True)
    read = compiled(query, key_codes, value_codes, key_scales, value_scales)
    keys = dequantize(key_codes, key_scales, torch.float32)
    values = dequantize(value_codes, value_scales, torch.float32)
    torch.testing.assert_close(read, reference.attend(query, keys, values, scale=SCALE), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 60, 32, 64), (1, 2, 7, 90, 16, 96), (1, 1, 1, 40, 64, 128)], ids=str
)
def test_loops_read_values_in_four_bits(shape: tuple[int, ...]) -> None:
    """Groups of one to four, queries that leave a rest, and stores of which a part is read."""
    query, key, value = operands(shape, torch.float32)
    (key_codes, key_scales), (value_codes, value_scales) = quantize(key), quantize_to_int4(value)
    torch._dynamo.reset()

    def attend_codes(query: torch.Tensor, *store: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_step(query, store[0], store[1], scale=SCALE, scales=(store[2], store[3]))

    compiled = torch.compile(attend_codes, fullgraph=True)
    count = shape[3] - 9
    store = [each[:, :, :count] for each in (key_codes, value_codes, key_scales, value_scales)]
    read = compiled(query, *store)
    keys = dequantize(key_codes, key_scales, torch.float32)[:, :, :count]
    values = dequantize_int4(value_codes, value_scales, torch.float32)[:, :, :count]
    wanted = reference.attend(query, keys, values, scale=SCALE)
    torch.testing.assert_close(read, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(attend_codes(query, *store), wanted, rtol=2e-5, atol=2e-5)


def test_what_follows_is_a_loop_of_its_own() -> None:
    """Something that reads the whole output, which Inductor would put into the same kernel."""
    query, key, value = operands((1, 2, 3, 20, 16, 32), torch.float32)
    grouped = query.unflatten(1, (2, 3)).squeeze(3)

    def doubled(*operands: torch.Tensor) -> torch.Tensor:
        return 2 * attend_one(*operands, None, None)

    wanted = doubled(grouped, key, value)
    with torch._inductor.config.patch(force_disable_caches=True):
        out = torch.compile(doubled, fullgraph=True)(grouped, key, value)
    torch.testing.assert_close(out, wanted, rtol=2e-5, atol=2e-5)


def test_threads_may_change_after_compiling() -> None:
    """More of them than there are keys leave parts empty."""
    query, key, value = operands((1, 3, 2, 3, 16, 16), torch.float32)
    torch._dynamo.reset()
    compiled, before = torch.compile(attend, fullgraph=True), torch.get_num_threads()
    wanted = reference.attend(query, key, value, scale=SCALE)
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            torch.testing.assert_close(
                compiled(query, key, value, torch.empty(3)), wanted, rtol=2e-5, atol=2e-5
            )
    finally:
        torch.set_num_threads(before)


def test_loops_stay_finite_where_logits_are_large() -> None:
    query, key, value = operands((1, 2, 2, 60, 16, 16), torch.float32)
    out, lse = torch.compile(attend, fullgraph=True)(query * 1e4, key, value, torch.empty(60))
    wanted, wanted_lse = reference.attend(query * 1e4, key, value, scale=SCALE)
    torch.testing.assert_close(out, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(lse, wanted_lse)


def test_the_loops_are_what_inductor_runs() -> None:
    from torch._inductor.utils import run_and_get_code

    query, key, value = operands((1, 2, 2, 60, 16, 16), torch.float32)
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        _, codes = run_and_get_code(torch.compile(attend, fullgraph=True), query, key, value, torch.empty(60))
    assert any("attend_part" in code for code in codes)
    assert not any("torch.ops.qfpass.attend_one.default(" in code for code in codes)


@pytest.mark.parametrize("quantised", [None, "int8", "int4"])
def test_operator(quantised: str | None) -> None:
    query, key, value = operands((1, 2, 3, 20, 16, 32), torch.float32)
    grouped, scales = query.unflatten(1, (2, 3)).squeeze(3), (None, None)
    if quantised:
        (key, key_scale), (value, value_scale) = (
            quantize(key),
            (quantize if quantised == "int8" else quantize_to_int4)(value),
        )
        scales = (key_scale, value_scale)
    torch.library.opcheck(attend_one, (grouped, key, value, *scales))


def test_fits_whole_vectors_of_one_dtype() -> None:
    _, key, value = operands((1, 2, 2, 5, 16, 32), torch.float32)
    assert fits(key, value)
    assert not fits(key.mT.contiguous().mT, value)
    assert not fits(key[..., :8], value) and not fits(key, value[..., :24])
    assert not fits(key, value.half()) and not fits(key.double(), value.double())
