"""The operator's contract, and what Inductor makes of it."""

import torch
from torch._inductor.utils import run_and_get_code

from qfpass.kernels.concatenate import concatenate


def sums(x: torch.Tensor) -> torch.Tensor:
    """Two parts of different lengths, read by a loop."""
    return concatenate([x[:, :3].sum(-1)[None], x[:2, 3:].sum(-1)[None]]).relu()


def test_operator() -> None:
    torch.library.opcheck(concatenate, ([torch.randn(1, 1, 3), torch.randn(1, 1, 5)],))


def test_parts_are_written_in_place() -> None:
    """Even where Inductor is told to compute concatenations where they are read: nothing selects a part."""
    from qfpass.kernels import lowerings

    lowerings.register()
    x = torch.randn(4, 8)
    with torch._inductor.config.patch(force_pointwise_cat=True, force_disable_caches=True):
        out, codes = run_and_get_code(torch.compile(sums, fullgraph=True), x)
    torch.testing.assert_close(out, sums(x))
    assert any("alias" in code for code in codes)
    assert not any("torch.ops.qfpass.concatenate.default(" in code for code in codes)
