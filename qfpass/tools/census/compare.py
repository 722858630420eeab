"""How a compiled model is read, and what is computed compared."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

TOLERANCE = 1e-4  # of the largest logit: float32's rounding of sums taken in another order


class DifferenceError(Exception):
    """The compiled model computes something else than the original."""


def read(compiled: Any, ids: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """The logits [B, S, V] for ids [B, S] read in pieces that end at `ends`."""
    session = compiled.session()
    outputs: Iterable[Any] = [compiled(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
    return torch.cat([as_logits(output) for output in outputs], dim=1)


def as_logits(output: Any) -> torch.Tensor:
    """The logits [B, S, V] of what a compiled model returned."""
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits


def require_close(actual: torch.Tensor, expected: torch.Tensor, how: str) -> None:
    """Raise DifferenceError if logits differ by more than rounding."""
    found = difference(actual, expected)
    if not found <= TOLERANCE:
        raise DifferenceError(f"{how}, its logits differ by {found:.1e} of the largest")


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN if either holds one."""
    return float((actual - expected).abs().max() / expected.abs().max())
