"""Weights of optimum-quanto in few bits, whose parts are private."""

from typing import Any, NamedTuple

import torch


class FewBits(NamedTuple):
    """Codes packed in bytes [groups * bits / 8, K], with scales and shifts; `groups` rows once unpacked."""

    bits: int
    groups: int
    codes: torch.Tensor
    scales: torch.Tensor
    shifts: torch.Tensor


def few_bits_of(weight: Any) -> FewBits | None:
    """The parts of a weight that quanto holds in two or four bits by rows; None for any other.

    Raises:
        AttributeError: another version of quanto holds something else.
    """
    if type(weight).__name__ != "WeightQBitsTensor" or weight.axis != 0:
        return None
    packed = weight._data
    if type(packed).__name__ != "PackedTensor" or packed._bits not in (2, 4):
        return None
    return FewBits(packed._bits, packed.shape[0], packed._data, weight._scale, weight._shift)
