"""Read a call's tokens into a session: rows that stand alike together, others row by row.

A row read by itself runs exactly the calls that it would run in a session of its own. Steps always run
together: a row with no token in a step is put back afterwards. Calls of other threads get their turn between
the pieces of a prompt.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from .decoder import Decoder
from .overflow import bring_back, overflows
from .overwritten import Overwritten
from .rows import Span, Wanted, all_equal
from .session import Session
from .undo import Undo


@torch.no_grad()
def read(
    decoder: Decoder, session: Session, ids: torch.Tensor, spans: Sequence[Span], wanted: torch.Tensor
) -> torch.Tensor:
    """Read the tokens of ids [B, S] int64 that `spans` show; logits [B, len(wanted), V].

    `wanted` holds ascending columns, int64 on the CPU; `Wanted` tells what padding gives. If anything
    fails, or another thread cancels the call, the session stands where it stood.
    """
    tokens = [span.tokens for span in spans]
    is_step = max(tokens) == 1
    # What a step will overwrite is found by a graph that others must not run before the step.
    with session.in_use(), decoder.running() if is_step else nullcontext():
        moves = any(map(partial(overflows, decoder), session.rows, tokens))
        undo = Undo(session, decoder.watch, is_step, moves)
        try:
            session.refuse_if_cancelled()
            session.allocate(len(spans))
            if all_equal(session.rows) and all_equal(spans):
                logits = _read_alike(decoder, session, ids, spans[0], wanted, undo.overwritten)
            elif is_step:
                logits = _step(decoder, session, ids, spans, wanted, undo.overwritten)
            else:
                logits = _read_each(decoder, session, ids, spans, wanted)
            session.note_read(ids, spans)
        except BaseException:
            undo.restore()
            raise
    return logits


def _read_alike(
    decoder: Decoder,
    session: Session,
    ids: torch.Tensor,
    span: Span,
    wanted: torch.Tensor,
    overwritten: Overwritten | None,
) -> torch.Tensor:
    """Read the columns `span` of ids [B, S] into every row."""
    chosen, own = Wanted(wanted, span), ids[:, slice(*span)]
    if span.tokens > 1:
        return chosen.spread(_read_pieces(decoder, session, own, None, chosen.tokens))
    logits = _read_piece(decoder, session, own, None, chosen.tokens, 0, overwritten)
    assert logits is not None  # every span gives a column's logits
    return chosen.spread(logits)


def _read_pieces(
    decoder: Decoder, session: Session, ids: torch.Tensor, row: int | None, wanted: torch.Tensor
) -> torch.Tensor:
    """Read ids [B, S] into every row, or into `row` alone, piece by piece; logits of the `wanted` tokens."""
    size, parts = session.sizes.chunk, []
    for start in range(0, ids.shape[1], size):
        session.refuse_if_cancelled()
        piece, left = ids[:, start : start + size], ids.shape[1] - start
        inside = wanted[(wanted >= start) & (wanted < start + piece.shape[1])] - start
        with decoder.running():
            part = _read_piece(decoder, session, piece, row, inside, left)
        if part is not None:
            parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _read_piece(
    decoder: Decoder,
    session: Session,
    ids: torch.Tensor,
    row: int | None,
    wanted: torch.Tensor,
    left: int,
    overwritten: Overwritten | None = None,
) -> torch.Tensor | None:
    """Read ids [B, S] into every row, or into `row` alone, at once; logits of the `wanted` tokens, if any.

    `left` counts the call's tokens from the first of these. `overwritten` is what a single token will
    overwrite, if that is known.
    """
    stores = session.stores if row is None else session.stores_of(row)
    affected = range(len(session.rows)) if row is None else (row,)
    length = ids.shape[1]
    bring_back(decoder, session, affected, length)
    rows = [session.rows[i] for i in affected]
    logits: torch.Tensor | None
    if length == 1:
        logits = decoder.step(ids, stores, rows, session.sizes, range(len(rows)), overwritten)
        logits = logits if len(wanted) else None
    else:
        logits = decoder.chunk(ids, stores, rows[0], session.sizes, wanted, rows[0].position + left - 1)
    session.advance(affected, length)
    return logits


def _read_each(
    decoder: Decoder, session: Session, ids: torch.Tensor, spans: Sequence[Span], wanted: torch.Tensor
) -> torch.Tensor:
    parts: list[torch.Tensor | None] = []
    for row, span in enumerate(spans):
        if span.tokens == 0:
            parts.append(None)
            continue
        chosen = Wanted(wanted, span)
        own = ids[row : row + 1, slice(*span)]
        parts.append(chosen.spread(_read_pieces(decoder, session, own, row, chosen.tokens)))
    return _stacked(parts)


def _step(
    decoder: Decoder,
    session: Session,
    ids: torch.Tensor,
    spans: Sequence[Span],
    wanted: torch.Tensor,
    overwritten: Overwritten | None,
) -> torch.Tensor:
    """One token for every row that has one."""
    reading = [row for row, span in enumerate(spans) if span.tokens]
    bring_back(decoder, session, reading, 1)
    resting = [row for row in range(len(spans)) if row not in reading]
    if resting and overwritten is None:
        overwritten = decoder.watch(session)
    column = torch.tensor([span.start for span in spans], device=ids.device)
    token = ids.gather(1, column[:, None])
    logits = decoder.step(token, session.stores, session.rows, session.sizes, reading, overwritten)
    if resting and overwritten is not None:
        overwritten.restore(resting)
    session.advance(reading, 1)
    parts = [Wanted(wanted, s).spread(logits[i : i + 1]) if s.tokens else None for i, s in enumerate(spans)]
    return _stacked(parts)


def _stacked(parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Rows [1, T, V] as [B, T, V]; a row that read nothing gives zeros."""
    like = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(like) if part is None else part for part in parts])
