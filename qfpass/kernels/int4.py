"""Numbers in four bits: how groups of them are packed in bytes, with a scale each."""

import torch

GROUP = 32  # numbers that share a scale
ZERO, LARGEST = 8, 7


def quantize_to_int4(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [..., D / 2] and scales bfloat16 [..., D / 32] of a finite tensor [..., D].

    A group's number of largest magnitude becomes -8 times the scale, which is negative if that number is
    positive: so all 16 levels are used. Another number's error is at most 1/16 of the largest magnitude, or
    1/8 where it lies beyond 7 steps on the other side. Byte i of a group holds the numbers i, in its lower
    four bits, and i + 16; `ZERO` stands for 0.
    """
    groups = tensor.float().unflatten(-1, (-1, GROUP))
    highest, lowest = groups.amax(-1), groups.amin(-1)
    scales = (torch.where(highest >= -lowest, highest, lowest) / -ZERO).to(torch.bfloat16)
    divisors = torch.where(scales == 0, 1.0, scales.float())[..., None]
    codes = (groups / divisors).round().clamp(-ZERO, LARGEST).to(torch.int32) + ZERO
    lower, upper = codes.split(GROUP // 2, dim=-1)
    return (lower + upper * 16).to(torch.uint8).flatten(-2), scales


def dequantize_int4(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [..., D] in `dtype` of codes [..., D / 2] and scales [..., D / 32]."""
    groups = codes.unflatten(-1, (-1, GROUP // 2)).to(torch.int32)
    numbers = torch.cat([groups & 15, groups >> 4], -1) - ZERO
    return (numbers.float() * scales.float()[..., None]).flatten(-2).to(dtype)
