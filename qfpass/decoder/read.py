"""Read a call's tokens into a session.

Rows that are at the same position and have tokens in the same columns are read together, others one by one.
A row that is read alone runs exactly the graph calls that it would run in a session of its own. A step always
runs all rows together; afterwards the stores of rows without a token are restored. Calls of other threads get
their turn between the chunks of a prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch

from ..sessions.overwritten import Overwritten, overwritten_by
from ..sessions.rows import TokenColumns, Wanted, all_equal, stepping
from ..sessions.session import Session
from ..sessions.tokens import Tokens
from .decoder import Decoder
from .overflow import move_keys_back, overflows
from .undo import Undo

Turn = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def read(
    decoder: Decoder, session: Session, tokens: Tokens, spans: Sequence[TokenColumns], wanted: torch.Tensor
) -> torch.Tensor:
    """Read tokens [B, S] into the session; logits [B, len(wanted), V] of the wanted columns.

    Hidden states that the tokens ask for come before the logits: [B, len(wanted), n * E + V].

    If anything fails, or another thread cancels the call, the session is restored to its state before.

    Args:
        spans: the columns of each row's tokens; the others are padding.
        wanted: columns in any order, int64 on the CPU; see `Wanted` for the logits of padding.
    """
    lengths = [span.tokens for span in spans]
    is_step = max(lengths) == 1
    decoder.by_ends.prepare(tokens.ends)
    # A step keeps its turn from here on: `Undo` runs the graph that finds what the step overwrites, and no
    # other thread may run that graph before the step. Other calls copy what they may change in a turn of its
    # own, since a pool's step writes into all rows before it restores those that rest.
    of_step, of_undo = _turns(decoder, is_step)
    with session.in_use(), of_step():
        moves = any(map(partial(overflows, decoder), session.rows, lengths))
        with of_undo():
            undo = Undo(session, decoder.watch, lengths, moves)
        try:
            session.refuse_if_cancelled()
            session.allocate(len(spans))
            if all_equal(session.rows) and all_equal(spans):
                logits = _read_together(decoder, session, tokens, spans[0], wanted, undo.overwritten)
            elif is_step:
                logits = _read_step(decoder, session, tokens, spans, wanted, undo.overwritten)
            else:
                logits = _read_row_by_row(decoder, session, tokens, spans, wanted)
            session.note_read(tokens.ids, spans)
        except BaseException:
            undo.restore(of_undo())
            raise
    return logits


def _turns(decoder: Decoder, is_step: bool) -> tuple[Turn, Turn]:
    """The turns that a whole step needs, and that keeping and undoing the changes of another call needs."""
    return (decoder.running, nullcontext) if is_step else (nullcontext, decoder.running)


def _read_together(
    decoder: Decoder,
    session: Session,
    tokens: Tokens,
    span: TokenColumns,
    wanted: torch.Tensor,
    overwritten: Overwritten | None,
) -> torch.Tensor:
    """Read the columns `span` of tokens [B, S] into every row; logits [B, len(wanted), V]."""
    chosen, own = Wanted(wanted, span), tokens.between(*span)
    if span.tokens > 1:
        return chosen.spread(_read_chunks(decoder, session, own, None, chosen.tokens))
    logits = _read_chunk_or_token(decoder, session, own, None, chosen.tokens, 1, overwritten)
    assert logits is not None  # `Wanted.tokens` is never empty for a row with tokens
    return chosen.spread(logits)


def _read_chunks(
    decoder: Decoder, session: Session, tokens: Tokens, row: int | None, wanted: torch.Tensor
) -> torch.Tensor:
    """Read tokens [B, S] in chunks into every row, or into `row` alone; logits [B, len(wanted), V].

    `wanted` holds indices of `tokens`.
    """
    parts = []
    for start, end in pairwise(_ends_of_pieces(session, tokens.columns)):
        session.refuse_if_cancelled()
        piece, left = tokens.between(start, end), tokens.columns - start
        inside = wanted[(wanted >= start) & (wanted < start + piece.columns)] - start
        with decoder.running():
            part = _read_chunk_or_token(decoder, session, piece, row, inside, left)
        if part is not None:
            parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _ends_of_pieces(session: Session, tokens: int) -> list[int]:
    """Where a call of so many tokens is cut into chunks: 0, ..., `tokens`.

    The tokens that may be taken back are chunks of their own.
    """
    size, final = session.sizes.chunk, max(0, tokens - session.take_back)
    return [*range(0, final, size), *range(final, tokens, size), tokens]


def _read_chunk_or_token(
    decoder: Decoder,
    session: Session,
    tokens: Tokens,
    row: int | None,
    wanted: torch.Tensor,
    left: int,
    overwritten: Overwritten | None = None,
) -> torch.Tensor | None:
    """Read tokens [B, S] at once into every row, or into `row` alone; logits [B, len(wanted), V] or None.

    Args:
        wanted: indices of `tokens`; None is returned if it is empty.
        left: the number of tokens from the first of `tokens` to the end of the call.
        overwritten: what a single token will overwrite, if that is known.
    """
    stores = session.stores if row is None else session.stores_of(row)
    affected = range(len(session.rows)) if row is None else (row,)
    length = tokens.columns
    move_keys_back(decoder, session, affected, length)
    rows = [session.rows[i] for i in affected]
    may_be_taken_back = left <= session.take_back
    if may_be_taken_back:
        overwritten = _note_overwritten(session, affected, length, overwritten)
    logits: torch.Tensor | None
    if length == 1:
        sizes = [session.sizes] * len(rows)
        logits = decoder.step(tokens, stores, rows, sizes, range(len(rows)), overwritten)
        logits = logits if len(wanted) else None
    else:
        end = rows[0].position + left - 1
        logits = decoder.chunk(tokens, stores, rows[0], session.sizes, wanted, end, may_be_taken_back)
    session.advance(affected, length)
    return logits


def _note_overwritten(
    session: Session, rows: Sequence[int], tokens: int, found: Overwritten | None
) -> Overwritten:
    """Keep in the session what the next tokens of these rows will overwrite, and return it.

    `found`: the same, if it was found already.
    """
    if found is None:
        first = torch.tensor([session.rows[row].position for row in rows])
        position = (first[:, None] + torch.arange(tokens)).to(session.device)
        kept = overwritten_by(session.stores, rows, position, session.sizes.recent)
    else:
        kept = found.cloned()
    session.note_overwritten(kept)
    return kept


def _read_row_by_row(
    decoder: Decoder, session: Session, tokens: Tokens, spans: Sequence[TokenColumns], wanted: torch.Tensor
) -> torch.Tensor:
    """Read each row's columns of tokens [B, S] by themselves; logits [B, len(wanted), V]."""
    parts: list[torch.Tensor | None] = []
    for row, span in enumerate(spans):
        if span.tokens == 0:
            parts.append(None)
            continue
        chosen = Wanted(wanted, span)
        own = tokens.of_row(row).between(*span)
        parts.append(chosen.spread(_read_chunks(decoder, session, own, row, chosen.tokens)))
    return _join_rows(parts)


def _read_step(
    decoder: Decoder,
    session: Session,
    tokens: Tokens,
    spans: Sequence[TokenColumns],
    wanted: torch.Tensor,
    overwritten: Overwritten | None,
) -> torch.Tensor:
    """Read one token into each row whose span isn't empty; logits [B, len(wanted), V]."""
    reading = [row for row, span in enumerate(spans) if span.tokens]
    move_keys_back(decoder, session, reading, 1)
    resting = [row for row in range(len(spans)) if row not in reading]
    rows = stepping(session.rows, reading)
    if (resting or session.take_back) and overwritten is None:
        overwritten = decoder.watch(session.stores, rows, session.row_sizes)
    if session.take_back and overwritten is not None:
        session.note_overwritten(overwritten.of_rows(reading).cloned())
    column = torch.tensor([span.start for span in spans], device=tokens.ids.device)
    token = tokens.at(column)
    logits = decoder.step(token, session.stores, rows, session.row_sizes, reading, overwritten)
    if resting and overwritten is not None:
        overwritten.restore(session.stores, resting)
    session.advance(reading, 1)
    parts = [Wanted(wanted, s).spread(logits[i : i + 1]) if s.tokens else None for i, s in enumerate(spans)]
    return _join_rows(parts)


def _join_rows(parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The logits [B, T, V] of rows [1, T, V]; zeros for None, a row that read nothing."""
    like = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(like) if part is None else part for part in parts])
