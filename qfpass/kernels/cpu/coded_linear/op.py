"""Exact codes of a weight, and an operator for a few tokens' products, which Inductor has loops for.

A float32 weight from a file of quantised blocks holds no more than their bits: a step and a low for each
block, and a code of eight bits for each number. Reading these takes a third of the time.
"""

from pathlib import Path
from typing import NamedTuple

import torch

SOURCE = Path(__file__).with_name("loops.cpp").read_text()
BLOCK = 32  # numbers that share a step, as in the usual formats
LARGEST = 255  # the largest code
_BLOCKS_AT_ONCE = 1 << 13  # few enough to stay in a processor's cache


class Codes(NamedTuple):
    """A weight [N, K] = codes [N, K] uint8 * steps [N, K / BLOCK] + lows [N, K / BLOCK], float32."""

    codes: torch.Tensor
    steps: torch.Tensor
    lows: torch.Tensor


def encode(weight: torch.Tensor) -> Codes | None:
    """Codes of a float32 weight [N, K] that decode to exactly its numbers; None if none are found.

    They are found if the blocks were dequantised without rounding, as those of the GGUF formats Q8_0, Q4_0,
    Q4_1, Q5_0 and Q5_1 are. Q6_K has none, since it has a step for each 16 numbers.
    """
    if weight.dtype != torch.float32 or weight.shape[1] % BLOCK:
        return None
    made = []
    for blocks in weight.detach().reshape(-1, BLOCK).split(_BLOCKS_AT_ONCE):
        made.append(_encode_blocks(blocks))
        if made[-1] is None:
            return None
    codes, steps, lows = (torch.cat(parts) for parts in zip(*made, strict=True))
    rows = len(weight)
    return Codes(codes.view(rows, -1), steps.view(rows, -1), lows.view(rows, -1))


def decode(codes: torch.Tensor, steps: torch.Tensor, lows: torch.Tensor) -> torch.Tensor:
    """The weight [N, K] float32 of `Codes`, each number rounded once."""
    blocks = codes.unflatten(-1, (-1, BLOCK)).double() * steps.double()[..., None] + lows.double()[..., None]
    return blocks.flatten(-2).float()


def _encode_blocks(blocks: torch.Tensor) -> Codes | None:
    """Codes [M, BLOCK], steps [M] and lows [M] of blocks [M, BLOCK]; None if these aren't exact."""
    lows = blocks.amin(1)
    distances = blocks - lows[:, None]
    steps = _common_divisors(distances)
    if steps is None:
        return None
    made = Codes((distances / steps[:, None]).round().to(torch.uint8), steps[:, None], lows[:, None])
    return Codes(made.codes, steps, lows) if torch.equal(decode(*made), blocks) else None


def _common_divisors(distances: torch.Tensor) -> torch.Tensor | None:
    """The greatest common divisor [M] of each row of distances [M, BLOCK], by Euclid's algorithm.

    None if any row has a distance of more than LARGEST times its divisor. The remainders of exact multiples
    are exact in floating point.
    """
    farthest, remainders = distances.amax(1), distances
    divisors = torch.where(farthest > 0, farthest, 1.0)
    while (left := remainders > 0).any():
        divisors = divisors.minimum(torch.where(left, remainders, torch.inf).amin(1))
        if (farthest > (LARGEST + 0.5) * divisors).any():
            return None
        multiples = (distances / divisors[:, None]).round() * divisors[:, None]
        remainders = (distances - multiples).abs()
    return divisors


@torch.library.custom_op("qfpass::coded_linear", mutates_args=())
def coded_linear(
    x: torch.Tensor, codes: torch.Tensor, steps: torch.Tensor, lows: torch.Tensor
) -> torch.Tensor:
    """The products [T, N] float32 of x [T, K] float32 with a weight [N, K] given by its `Codes`."""
    return x @ decode(codes, steps, lows).mT


@coded_linear.register_fake
def _fake(x: torch.Tensor, codes: torch.Tensor, steps: torch.Tensor, lows: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])
