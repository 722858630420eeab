"""A step's eviction in one call: a decoder finds the slots of all layers before its graphs run."""

import torch

from qfpass.store.slots import Protection, slot_to_replace, write
from qfpass.store.store_kind import StoreKind


def replace_lowest(slots: StoreKind, protection: Protection, *token: torch.Tensor) -> None:
    """Write one token (its key, value, score, position) over the unprotected slot with the lowest score."""
    *_, position = token
    write(slots, slot_to_replace(slots.scores, slots.positions, protection, position), *token)
