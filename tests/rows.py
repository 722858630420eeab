"""Texts of different lengths, padded to one batch, and settings of a small store for them."""

from typing import Any

import torch

LENGTHS = (3, 40, 12, 25)
SETTINGS: dict[str, Any] = {"chunk": 10, "recent": 4, "score": "recency", "backend": "eager"}


def text(length: int, seed: int = 0) -> torch.Tensor:
    """Random ids [1, length], none of them the padding token, 0."""
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """Rows [1, length] as input_ids and attention_mask [B, longest]."""
    longest = max(row.shape[1] for row in rows)
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        length = row.shape[1]
        place = slice(longest - length, None) if side == "left" else slice(length)
        ids[i, place], mask[i, place] = row[0], 1
    return {"input_ids": ids, "attention_mask": mask}


ROWS = [text(length, seed) for seed, length in enumerate(LENGTHS)]
