"""cuBLAS's scratch memory can be freed."""

import pytest
import torch

from qfpass.upstream import cublas

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_free_workspaces_gives_memory_back() -> None:
    x = torch.randn(64, 64, device="cuda")
    assert (x @ x).isfinite().all()
    held = torch.cuda.memory_allocated()
    cublas.free_workspaces()
    assert torch.cuda.memory_allocated() < held
