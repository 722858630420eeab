"""A few tokens' products with weights in groups, as an operator which Inductor has loops for.

A weight [N, K] is (codes - zeros) * scales, with a scale and a zero for each group of numbers of a row. The
loops compute it in float32, in registers. Codes are of eight bits, int8 [N, K], or of four, which are packed
in pairs: byte i of each `UNIT` numbers holds the numbers i, in its lower four bits, and i + UNIT / 2.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("loops.cpp").read_text()
UNIT = 32  # numbers that the loops decode at once: a group is one or several of these
ZERO = 8  # of codes of four bits, 0 to 15, that have no zeros of their own


def fits(codes: torch.Tensor, scales: torch.Tensor) -> bool:
    """Whether the loops take codes int8 [N, K] of this layout, with scales [N, K / G] of these groups."""
    return (
        codes.device.type == "cpu"
        and codes.dtype == torch.int8
        and scales.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and codes.dim() == scales.dim() == 2
        and codes.shape[0] == scales.shape[0]
        and codes.stride(1) == 1
        and codes.shape[1] % (scales.shape[1] * UNIT) == 0
    )


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [N, K / 2] of numbers [N, K] from -`ZERO` to 15 - `ZERO`, packed in pairs."""
    lower, upper = (codes + ZERO).to(torch.uint8).unflatten(1, (-1, 2, UNIT // 2)).unbind(2)
    return (lower | upper << 4).flatten(1)


def dequantised(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    """The weight [N, K] float32 of codes, scales [N, K / G] and zeros [N, K / G]."""
    numbers = codes.float()
    if codes.dtype == torch.uint8:
        units = codes.unflatten(1, (-1, UNIT // 2))
        numbers = torch.cat([units & 15, units >> 4], -1).flatten(1).float()
        zeros = torch.full_like(scales, ZERO) if zeros is None else zeros
    groups = numbers.unflatten(1, (scales.shape[1], -1))
    return ((groups if zeros is None else groups - zeros[..., None]) * scales[..., None]).flatten(1)


@torch.library.custom_op("qfpass::grouped_linears", mutates_args=())
def grouped_linears(
    x: torch.Tensor,
    codes: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    zeros: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """The products [T, N + N + ...] float32 of x [T, K] float32 with weights [N, K], concatenated.

    Args:
        codes: of each weight, packed uint8 [N, K / 2] or int8 [N, K].
        scales: float32, float16 or bfloat16 [N, K / G], of each weight's groups of G numbers.
        zeros: float32 [N, K / G], the codes that mean 0, or None for `ZERO` if codes are packed, else 0.
    """
    return torch.cat([x @ dequantised(*each).mT for each in zip(codes, scales, zeros, strict=True)], -1)


@grouped_linears.register_fake
def _fake(
    x: torch.Tensor,
    codes: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    zeros: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    return x.new_empty(x.shape[0], sum(each.shape[0] for each in codes))
