"""A few tokens' products with weights as an operator, which Inductor has loops for.

A decode step on a processor spends nearly all its time on reading weights. A library's product of few rows
reaches half of the memory's bandwidth, and Inductor's own loops wait for memory too. `loops.cpp` reads four
rows of a weight at once and prefetches. Each token's products are those of the token alone, to the last bit.
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


@torch.library.custom_op("qfpass::few_token_linears", mutates_args=())
def few_token_linears(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """The products [T, N + N + ...] float32 of x [T, K] with weights [N, K], concatenated.

    x is float32, or bfloat16 if all weights are.
    """
    return torch.cat([x.float() @ weight.float().mT for weight in weights], -1)


@few_token_linears.register_fake
def _fake(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(x.shape[0], sum(weight.shape[0] for weight in weights), dtype=torch.float32)
