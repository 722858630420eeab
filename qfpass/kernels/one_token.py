"""One token's products with weights as an operator, for which Inductor is given loops of ours.

A decode step on a processor is little else than reading weights; a library's matrix-vector product reaches
half of what memory gives, and Inductor's own loops wait for memory too. `one_token.cpp` reads four rows side
by side and asks for what comes next.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("one_token.cpp").read_text()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(weights: Sequence[torch.Tensor]) -> bool:
    """Whether the loops take weights of this device, these dtypes and this layout."""
    return all(
        weight.device.type == "cpu" and weight.dtype in DTYPES and weight.dim() == 2 and weight.stride(1) == 1
        for weight in weights
    )


@torch.library.custom_op("qfpass::one_token_linears", mutates_args=())
def one_token_linears(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """x [1, 1, K] float32, weights [N, K] each -> [1, 1, N + N + ...] float32, below one another."""
    return torch.cat([x @ weight.float().mT for weight in weights], -1)


@one_token_linears.register_fake
def _fake(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(1, 1, sum(weight.shape[0] for weight in weights))
