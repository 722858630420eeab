"""Shapes and dtypes of the CUDA kernels on tensors without data, so that no GPU is needed."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qfpass.kernels import sdpa_cuda


@pytest.mark.parametrize(
    ("attend", "dtype"),
    [
        (sdpa_cuda.attend_flash, torch.float16),
        (sdpa_cuda.attend_flash, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(
    ("queries", "keys", "form"),
    [(1, 40, {}), (7, 40, {}), (7, 7, {"causal": True}), (1, 3, {})],
)
def test_shapes_and_dtypes(
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
    queries: int,
    keys: int,
    form: dict[str, int],
) -> None:
    with FakeTensorMode():
        query = torch.empty(2, 6, queries, 64, dtype=dtype, device="cuda")
        key = torch.empty(2, 2, keys, 64, dtype=dtype, device="cuda")
        out, lse = attend(query, key, key, scale=0.1, **form)
    assert out.shape == query.shape
    assert out.dtype == dtype
    assert lse.shape == (2, 6, queries)
    assert lse.dtype == torch.float32
    assert out.device.type == lse.device.type == "cuda"
