"""Read a call's tokens into a session: rows that stand alike together, others row by row.

A row read by itself runs exactly the calls that it would run in a session of its own. Steps always run
together: a row with no token in a step is put back afterwards.
"""

from collections.abc import Sequence
from functools import partial

import torch

from .as_compiled import as_compiled
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
    fails, the session stands where it stood.
    """
    tokens = [span.tokens for span in spans]
    settings = as_compiled(decoder.device, decoder.default_dtype)
    with session.in_use(), decoder.lock, settings:
        moves = any(map(partial(overflows, decoder), session.rows, tokens))
        undo = Undo(session, decoder.watch, max(tokens) == 1, moves)
        try:
            session.allocate(len(spans))
            if all_equal(session.rows) and all_equal(spans):
                chosen = Wanted(wanted, spans[0])
                own = ids[:, slice(*spans[0])]
                logits = chosen.spread(
                    _read_alike(decoder, session, own, None, chosen.tokens, undo.overwritten)
                )
            elif max(tokens) == 1:
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
    row: int | None,
    wanted: torch.Tensor,
    overwritten: Overwritten | None = None,
) -> torch.Tensor:
    """Read ids [B, S] into every row, or into `row` alone, piece by piece; logits of the `wanted` tokens.

    `overwritten` is what a single token will overwrite, if that is known.
    """
    stores = session.stores if row is None else session.stores_of(row)
    affected = range(len(session.rows)) if row is None else (row,)
    size, parts = session.sizes.chunk, []
    for start in range(0, ids.shape[1], size):
        piece = ids[:, start : start + size]
        length = piece.shape[1]
        bring_back(decoder, session, affected, length)
        rows = [session.rows[i] for i in affected]
        inside = wanted[(wanted >= start) & (wanted < start + length)] - start
        if length == 1:
            logits = decoder.step(piece, stores, rows, session.sizes, range(len(rows)), overwritten)
            part = logits if len(inside) else None
        else:
            call_end = rows[0].position + ids.shape[1] - start - 1
            part = decoder.chunk(piece, stores, rows[0], session.sizes, inside, call_end)
        session.advance(affected, length)
        if part is not None:
            parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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
        parts.append(chosen.spread(_read_alike(decoder, session, own, row, chosen.tokens)))
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
