"""The rows of a batch: how far each has read, its columns in a call, and the logits that it returns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """How far a row is.

    Attributes:
        tokens: the number of tokens that it has read.
        position: that of its next token.
        axes_ahead: how far the next token's positions on several axes, which images move, are ahead of that.
    """

    tokens: int = 0
    position: int = 0
    axes_ahead: int = 0

    def advanced(self, tokens: int) -> "Row":
        """The row after reading `tokens` more tokens."""
        return self._replace(tokens=self.tokens + tokens, position=self.position + tokens)


def stepping(rows: Sequence[Row], reading: Sequence[int]) -> list[Row]:
    """The rows as a step sees them in which those with indices `reading` read a token.

    The others, whose stores are restored, stand at position 0: every model has that position, and a row at
    the end of its context has no next one.
    """
    return [row if i in reading else Row() for i, row in enumerate(rows)]


class TokenColumns(NamedTuple):
    """The columns [start, end) of a call that hold a row's tokens; its other columns are padding."""

    start: int
    end: int

    @property
    def tokens(self) -> int:
        """The number of the row's tokens in the call."""
        return self.end - self.start


def all_equal(values: Sequence[object]) -> bool:
    """Whether all values are equal."""
    return all(value == values[0] for value in values)


def spans_of(mask: torch.Tensor) -> list[TokenColumns] | None:
    """The columns where each row of a bool mask [B, S] is true; None if a row has gaps between them."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    counts = mask.sum(1)
    first = torch.where(mask, columns, mask.shape[1]).amin(1)
    last = torch.where(mask, columns, -1).amax(1)
    if bool((counts.gt(0) & (last - first + 1 != counts)).any()):
        return None
    starts, numbers = (t.tolist() for t in (first, counts))
    return [TokenColumns(a, a + n) if n else TokenColumns(0, 0) for a, n in zip(starts, numbers, strict=True)]


class Wanted:
    """The logits that a row returns for the `wanted` columns of a call (int64, on the CPU).

    `span` holds the row's own columns.

    Attributes:
        tokens: ascending indices of the row's own tokens, from 0, whose logits must be computed.
    """

    def __init__(self, wanted: torch.Tensor, span: TokenColumns) -> None:
        own = (wanted - span.start).clamp(0, span.tokens - 1)
        self.tokens, self._inverse = torch.unique(own, return_inverse=True)
        self._is_left_padding = wanted < span.start

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [B, len(wanted), V] of the wanted columns, from those of `tokens`, [B, len(tokens), V].

        Padding on the right repeats the last token's logits, so that generation can go on from the last
        column. Padding on the left has zeros.
        """
        if not torch.equal(self._inverse, torch.arange(len(self.tokens))):
            logits = logits[:, self._inverse.to(logits.device)]
        if bool(self._is_left_padding.any()):
            logits = logits.masked_fill(self._is_left_padding.to(logits.device)[:, None], 0.0)
        return logits
