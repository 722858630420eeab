"""Numbers in four bits: how groups of them are packed in bytes, with a scale each."""

import torch

GROUP = 32  # numbers that share a scale
ZERO, LARGEST = 8, 7


def quantize_to_int4(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [..., D / 2] and scales bfloat16 [..., D / 32] of a finite tensor [..., D].

    A group's number of largest magnitude becomes 7 or -7 times the scale, so an error is at most 1/14 of it.
    Byte i of a group holds the numbers i, in its lower four bits, and i + 16; `ZERO` stands for 0.
    """
    groups = tensor.float().unflatten(-1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / LARGEST).to(torch.bfloat16)
    # Rounding may have made the scale smaller, so codes are clamped.
    divisor = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    codes = (groups / divisor).round().clamp(-LARGEST - 1, LARGEST).to(torch.int32) + ZERO
    lower, upper = codes.split(GROUP // 2, dim=-1)
    return (lower + upper * 16).to(torch.uint8).flatten(-2), scales


def dequantize_int4(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [..., D] in `dtype` of codes [..., D / 2] and scales [..., D / 32]."""
    groups = codes.unflatten(-1, (-1, GROUP // 2)).to(torch.int32)
    numbers = torch.cat([groups & 15, groups >> 4], -1) - ZERO
    return (numbers.float() * scales.float()[..., None]).flatten(-2).to(dtype)
