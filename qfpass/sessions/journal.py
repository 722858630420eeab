"""The journal of a session: what its newest calls overwrote, by which their tokens can be taken back exactly.

A call's last `take_back` tokens are read in pieces of their own, no longer than the newest tokens that are
never evicted. So each piece's tokens are still in the stores, in the slots that it overwrote.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from .overwritten import Overwritten
from .rows import TokenColumns
from .stores import Stores


class Call(NamedTuple):
    """The number of columns of a call, and each row's tokens in them."""

    columns: int
    spans: tuple[TokenColumns, ...]

    def tokens_in_last(self, columns: int) -> list[int]:
        """The number of tokens that each row has in the call's last `columns` columns."""
        start = self.columns - columns
        return [max(0, span.end - max(span.start, start)) for span in self.spans]

    def without_last(self, columns: int) -> Self:
        """The call without its last `columns` columns."""
        end = self.columns - columns
        spans = tuple(TokenColumns(min(s.start, end), min(s.end, end)) for s in self.spans)
        return type(self)(end, spans)


class Journal(NamedTuple):
    """What the newest calls of a session overwrote; immutable, each method returns another one.

    Attributes:
        pieces: what each piece overwrote, in the order in which they were read.
        calls: the newest calls, of which the pieces are the last part.
        ended_by: what has made earlier tokens final; empty if only `take_back` has.
    """

    pieces: tuple[Overwritten, ...] = ()
    calls: tuple[Call, ...] = ()
    ended_by: str = ""

    def with_piece(self, piece: Overwritten) -> Self:
        """This journal and a piece that is about to be read."""
        return self._replace(pieces=(*self.pieces, piece))

    def after_call(self, columns: int, spans: Sequence[TokenColumns], take_back: int) -> Self:
        """This journal after a call whose pieces it has, without what is older than `take_back` columns."""
        longer = self._replace(calls=(*self.calls, Call(columns, tuple(spans))))
        return longer.shortened(take_back, len(spans))

    def shortened(self, take_back: int, rows: int) -> Self:
        """This journal without what is older than `take_back` columns."""
        first, covered = len(self.calls), 0
        while first and covered < take_back:
            first -= 1
            covered += self.calls[first].columns
        calls = self.calls[first:]
        left = _tokens_in_last(calls, take_back, rows)
        oldest = len(self.pieces)
        while oldest and any(left):
            oldest -= 1
            for row in self.pieces[oldest].rows:
                left[row] = max(0, left[row] - self.pieces[oldest].tokens)
        return self._replace(pieces=self.pieces[oldest:], calls=calls)

    def tokens_in_last(self, columns: int, rows: int) -> list[int] | None:
        """Each row's number of tokens in the last columns; None if the pieces don't hold them all."""
        tokens = _tokens_in_last(self.calls, columns, rows)
        held = [sum(piece.tokens for piece in self.pieces if row in piece.rows) for row in range(rows)]
        whole = columns <= sum(call.columns for call in self.calls)
        return tokens if whole and all(t <= h for t, h in zip(tokens, held, strict=True)) else None

    def take_back(self, stores: Stores, columns: int, rows: int, recent: int) -> Self:
        """Take the tokens of the last columns, all of which the pieces hold, out of the stores, in place.

        Returns:
            The journal of the calls without them.
        """
        left, pieces = _tokens_in_last(self.calls, columns, rows), list[Overwritten]()
        for piece in reversed(self.pieces):
            whole = [row for row in piece.rows if left[row] >= piece.tokens]
            parts = [row for row in piece.rows if 0 < left[row] < piece.tokens]
            if whole:
                piece.restore(stores, whole)
            for row in parts:
                kept = piece.tokens - left[row]
                pieces.insert(0, piece.restore_all_but(stores, row, kept, recent))
            if others := [row for row in piece.rows if left[row] == 0]:
                pieces.insert(0, piece.of_rows(others))
            for row in (*whole, *parts):
                left[row] = max(0, left[row] - piece.tokens)
        calls, columns_left = list(self.calls), columns
        while columns_left:
            removed = min(columns_left, calls[-1].columns)
            last = calls.pop().without_last(removed)
            calls += [last] if last.columns else []
            columns_left -= removed
        return self._replace(pieces=tuple(pieces), calls=tuple(calls))

    def reordered(self, chosen: Sequence[int]) -> Self:
        """The journal once row i is what row chosen[i] was."""
        pieces = tuple(p.reordered(chosen) for p in self.pieces if set(p.rows) & set(chosen))
        calls = tuple(call._replace(spans=tuple(call.spans[row] for row in chosen)) for call in self.calls)
        return self._replace(pieces=pieces, calls=calls)


def _tokens_in_last(calls: Sequence[Call], columns: int, rows: int) -> list[int]:
    tokens = [0] * rows
    for call in reversed(calls):
        if columns <= 0:
            break
        tokens = [
            t + more for t, more in zip(tokens, call.tokens_in_last(min(columns, call.columns)), strict=True)
        ]
        columns -= call.columns
    return tokens
