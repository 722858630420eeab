"""One token's products with weights as an operator, which Inductor has loops for.

A decode step on a processor spends nearly all its time on reading weights. A library's matrix-vector product
reaches half of the memory's bandwidth, and Inductor's own loops wait for memory too. `loops.cpp` reads four
rows at once and prefetches.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("loops.cpp").read_text()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def fits(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the loops take weights of this device, these dtypes and this layout."""
    return all(
        weight.device.type == "cpu" and weight.dtype in DTYPES and weight.dim() == 2 and weight.stride(1) == 1
        for weight in weights
    )


@torch.library.custom_op("qfpass::one_token_linears", mutates_args=())
def one_token_linears(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """The products [1, 1, N + N + ...] float32 of x [1, 1, K] float32 with weights [N, K], concatenated."""
    return torch.cat([x @ weight.float().mT for weight in weights], -1)


@one_token_linears.register_fake
def _fake(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(1, 1, sum(weight.shape[0] for weight in weights))
