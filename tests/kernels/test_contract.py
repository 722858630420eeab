"""Every kernel against a softmax written here, in float32, one query at a time."""

from typing import Any

import pytest
import torch
from attention_contract import FORMS, TOLERANCE, Attend, check, random
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.errors import InputError
from qfpass.kernels import reference
from qfpass.kernels.cpu import flash
from qfpass.kernels.cuda import flash_attn, sdpa_ops

ON_CPU = [flash.attend, reference.attend]
heads = {"batch": st.integers(1, 3), "kv_heads": st.integers(1, 3), "group": st.integers(1, 4)}
lengths = {"queries": st.integers(1, 20), "extra": st.integers(0, 30), "window": st.integers(1, 30)}
common = {
    **heads,
    **lengths,
    "head_dim": st.sampled_from([5, 16, 33, 64]),
    "dtype": st.sampled_from(list(TOLERANCE)),
    "seed": st.integers(0, 1000),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attend", ON_CPU, ids=["cpu", "reference"])
@given(**common)
@settings(max_examples=10)
def test_agrees_with_softmax(
    attend: Attend, form: str, batch: int, kv_heads: int, group: int, queries: int, extra: int,
    window: int, head_dim: int, dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    keys = queries if form == "causal" else queries + extra
    operands = random(batch, kv_heads, group, queries, keys, head_dim, head_dim, dtype, seed)
    check(attend, form, *operands, window)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attend", ON_CPU, ids=["cpu", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_reads_any_strides(attend: Attend, form: str, dtype: torch.dtype) -> None:
    query, key, value = random(2, 2, 3, 9, 9, 16, 16, dtype, seed=0)
    heads_last, dims_first = (
        [t.transpose(i, j).contiguous().transpose(i, j) for t in (query, key, value)]
        for i, j in ((1, 2), (2, 3))
    )
    for query, key, value in (heads_last, dims_first):
        assert not query.is_contiguous()
        check(attend, form, query, key, value, window=4)


@pytest.mark.parametrize("form", ["plain", "window"])
@pytest.mark.parametrize("attend", ON_CPU, ids=["cpu", "reference"])
@pytest.mark.parametrize("queries", [1, 5])
def test_reads_a_prefix_of_a_larger_store(attend: Attend, form: str, queries: int) -> None:
    query, key, value = random(2, 2, 2, queries, 30, 16, 16, torch.float32, seed=1)
    key[:, :, 13:], value[:, :, 13:] = float("nan"), float("nan")
    check(attend, form, query, key[:, :, :13], value[:, :, :13], window=6)


@pytest.mark.parametrize("form", FORMS)
def test_reference_takes_values_of_another_dimension(form: str) -> None:
    check(reference.attend, form, *random(2, 2, 2, 7, 7, 16, 5, torch.float32, seed=2), window=3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_reference_caps_logits(form: str, dtype: torch.dtype) -> None:
    check(reference.attend, form, *random(2, 2, 2, 7, 7, 16, 16, dtype, seed=2), window=3, softcap=0.5)


@pytest.mark.parametrize(
    ("queries", "keys", "form"),
    [
        (3, 1500, {}),
        (800, 800, {"causal": True}),
        (3, 1500, {"window": 5}),
        (800, 1500, {"window": 5}),
        (300, 1100, {"window": 513}),
    ],
)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_cpu_kernel_across_its_blocks(
    queries: int, keys: int, form: dict[str, Any], dtype: torch.dtype
) -> None:
    """Lengths beyond one block of the kernel, some of whose blocks a window hides altogether."""
    operands = random(1, 2, 2, queries, keys, 16, 16, dtype, seed=4)
    out, lse = flash.attend(*operands, scale=0.3, **form)
    wanted_out, wanted_lse = reference.attend(*operands, scale=0.3, **form)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out, wanted_out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, wanted_lse, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("attend", ON_CPU, ids=["cpu", "reference"])
def test_refuses_lengths_that_a_form_is_not_defined_for(attend: Attend) -> None:
    operands = random(1, 1, 1, 3, 2, 8, 8, torch.float32, seed=5)
    with pytest.raises(InputError, match=r"3 queries but 2 keys.*join"):
        attend(*operands, scale=1.0, causal=True)
    with pytest.raises(InputError, match=r"3 queries but 2 keys.*own"):
        attend(*operands, scale=1.0, window=4)
    with pytest.raises(InputError, match="window=0"):
        attend(*operands, scale=1.0, window=0)
    with pytest.raises(InputError, match=r"-inf in it"):
        attend(*operands, scale=1.0, causal=True, bias=torch.zeros(1, 1, 3, 2))
    with pytest.raises(InputError, match=r"\(1, 1, 3, 9\) for 3 queries and 2 keys"):
        attend(*operands, scale=1.0, bias=torch.zeros(1, 1, 3, 9))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("family", ["flash", "efficient", "flash-attn"])
@pytest.mark.parametrize(
    ("queries", "keys", "head_dim"), [(1, 1, 64), (1, 70, 80), (33, 33, 10), (33, 100, 64)]
)
def test_cuda_kernels(
    form: str, dtype: torch.dtype, family: str, queries: int, keys: int, head_dim: int
) -> None:
    if family != "efficient" and dtype == torch.float32:
        pytest.skip("FlashAttention takes half precision only")
    if family == "flash-attn" and not flash_attn.is_installed():
        pytest.skip("flash-attn is not installed")
    attend = {
        "flash": sdpa_ops.attend_flash,
        "efficient": sdpa_ops.attend_efficient,
        "flash-attn": flash_attn.attend,
    }[family]
    keys = queries if form == "causal" else keys
    operands = random(2, 2, 3, queries, keys, head_dim, head_dim, dtype, seed=3, device="cuda")
    check(attend, form, *operands, window=20)
