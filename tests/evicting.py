"""A step's eviction in one call: a decoder finds the slots of all layers before its graphs run."""

import torch

from qfpass.store.slots import AnySlots, Protection, slot_to_replace, write


def replace_lowest(
    slots: AnySlots,
    protection: Protection,
    key: torch.Tensor,
    value: torch.Tensor,
    score: torch.Tensor,
    position: torch.Tensor,
) -> None:
    """Write one token over the unprotected slot with the lowest score."""
    slot = slot_to_replace(slots.scores, slots.positions, protection, position)
    write(slots, slot, key, value, score, position)
