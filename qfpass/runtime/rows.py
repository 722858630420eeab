"""The rows of a batch: where each stands, which of a call's tokens are its own, which logits it gives."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """Where a row stands: the tokens it has read, and the position that its next one takes."""

    tokens: int = 0
    position: int = 0

    def advanced(self, tokens: int) -> "Row":
        """The row after so many more tokens."""
        return Row(self.tokens + tokens, self.position + tokens)


class Span(NamedTuple):
    """The columns [start, end) of a call that hold a row's tokens; the others are padding."""

    start: int
    end: int

    @property
    def tokens(self) -> int:
        return self.end - self.start


def all_equal(values: Sequence[object]) -> bool:
    """Whether there is one value only, however often."""
    return all(value == values[0] for value in values)


def spans_of(mask: torch.Tensor) -> list[Span] | None:
    """Where each row of a bool mask [B, S] is true; None if that isn't one piece in every row."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    counts = mask.sum(1)
    first = torch.where(mask, columns, mask.shape[1]).amin(1)
    last = torch.where(mask, columns, -1).amax(1)
    if bool((counts.gt(0) & (last - first + 1 != counts)).any()):
        return None
    starts, numbers = (t.tolist() for t in (first, counts))
    return [Span(a, a + n) if n else Span(0, 0) for a, n in zip(starts, numbers, strict=True)]


class Wanted:
    """Which logits a row gives for the `wanted` columns of a call, ascending int64 on the CPU.

    Attributes:
        tokens: the row's own tokens, counted from 0, whose logits must be computed.
    """

    def __init__(self, wanted: torch.Tensor, span: Span) -> None:
        own = (wanted - span.start).clamp(0, span.tokens - 1)
        self.tokens, self._place = torch.unique_consecutive(own, return_inverse=True)
        self._before = wanted < span.start

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, len(tokens), V] to [B, len(wanted), V].

        Padding on the right repeats the last token's, so that a row can be continued from the last column;
        padding on the left gives zeros.
        """
        if len(self._place) != len(self.tokens):
            logits = logits[:, self._place.to(logits.device)]
        if bool(self._before.any()):
            logits = logits.masked_fill(self._before.to(logits.device)[:, None], 0.0)
        return logits
