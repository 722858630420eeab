"""A bounded store of keys in eight bits and values in four: some 2.4 times the tokens of a bfloat16 store.

An error in a key moves the logit of its token; an error in a value is averaged over all tokens that a query
reads. So values want fewer bits. Each token has scales of its own: one for its key, one for every 32
numbers of its value.
"""

from typing import NamedTuple

import torch

from ..errors import ConfigError
from ..kernels.int4 import GROUP, dequantize_int4, quantize_to_int4
from .int8_slots import dequantize, quantize


class Int4ValueSlots(NamedTuple):
    """The tensors of one layer's store.

    keys [B, Hkv, C, D] int8 with key_scales [B, Hkv, C] float32; values [B, Hkv, C, Dv / 2] uint8, two
    numbers a byte, with value_scales [B, Hkv, C, Dv / 32] bfloat16; scores and positions as in `Slots`.
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
    ) -> "Int4ValueSlots":
        """Slots that hold these keys and values; a value has a multiple of 32 numbers.

        Raises:
            ConfigError: it has another number.
        """
        if values.shape[-1] % GROUP:
            raise ConfigError(
                f"a store of values in four bits packs groups of {GROUP} numbers, and a value here has "
                f"{values.shape[-1]}: use store_dtype=torch.int8, or None for the model's own."
            )
        (keys, key_scales), (values, value_scales) = quantize(keys), quantize_to_int4(values)
        return cls(keys, values, key_scales, value_scales, scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values, dequantised to `dtype`."""
        keys = dequantize(self.keys, self.key_scales, dtype)
        return keys, dequantize_int4(self.values, self.value_scales, dtype)
