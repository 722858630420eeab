"""A bounded store in eight bits: each key and each value is int8 codes and one float32 scale.

Each token has scales of its own in each head, because tokens enter and leave a head's store one by one. About
3.6 times as many tokens fit in the bytes of a float32 store, 1.8 times as many in those of a bfloat16 store.
"""

from typing import NamedTuple

import torch

LARGEST = 127


class Int8Slots(NamedTuple):
    """The tensors of one layer's int8 store.

    keys [B, Hkv, C, D] and values [B, Hkv, C, Dv] int8, their scales [B, Hkv, C] float32; scores and
    positions as in `Slots`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor
    value_scales: torch.Tensor
    scores: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(
        cls, keys: torch.Tensor, values: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor
    ) -> "Int8Slots":
        """Slots that hold these keys and values, quantised to int8."""
        (keys, key_scales), (values, value_scales) = quantize(keys), quantize(values)
        return cls(keys, values, key_scales, value_scales, scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values, dequantised to `dtype`."""
        return dequantize(self.keys, self.key_scales, dtype), dequantize(
            self.values, self.value_scales, dtype
        )


def quantize(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [..., D] and scales float32 [...] whose product is nearest to a finite tensor [..., D].

    The number of largest magnitude in the last dimension becomes 127 or -127, so the error is at most 1/254
    of it.
    """
    wide = tensor.float()
    scales = (wide.abs().amax(-1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (wide / scales[..., None]).round()
    return codes.clamp(-LARGEST, LARGEST).to(torch.int8), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The product of codes int8 [..., D] and scales [...], as [..., D] in `dtype`."""
    return (codes.float() * scales[..., None]).to(dtype)
