"""Check a call's arguments before the call changes anything."""

import operator
from collections.abc import Sequence

import torch

from ..decoder.decoder import Decoder
from ..errors import InputError, SessionError
from ..sessions.rows import TokenColumns, all_equal, spans_of
from ..sessions.session import Session
from ..sessions.tokens import UNKNOWN_ID, Tokens
from .changes import DecoderVersions


def check_session(decoder: Decoder, session: object, changes: DecoderVersions) -> None:
    """Refuse a cache that isn't a session of `decoder`.

    Raises:
        SessionError: it isn't a session, or one of another model, or of this model before a change.
    """
    if not isinstance(session, Session):
        raise SessionError(
            f"the cache given is a {type(session).__name__}, not a session of this model: make one "
            "with model.session()."
        )
    if not session.belongs_to(decoder):
        changes.refuse_earlier(session)
        raise SessionError("the session belongs to another compiled model: use this one's session().")


def check_inputs(
    decoder: Decoder,
    session: Session,
    ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    embeddings: torch.Tensor | None = None,
) -> tuple[Tokens, list[TokenColumns]]:
    """The tokens [B, S] on the decoder's device, 0 where padding, and the columns of each row's tokens.

    Raises:
        InputError: an argument is wrong in itself, or doesn't fit the session, context or vocabulary.
    """
    if embeddings is None:
        ids = _checked_ids(ids)
    elif ids is None:
        ids = _unknown_ids(decoder, embeddings)
    else:
        raise InputError("input_ids and inputs_embeds were both given: give the one that is to be read.")
    if session.tokens_seen and ids.shape[0] != session.batch:
        raise InputError(f"the session holds {session.batch} rows, {_name(embeddings)} has {ids.shape[0]}.")
    if decoder.graphs.rows is not None and ids.shape[0] not in decoder.graphs.rows:
        raise InputError(
            f"{_name(embeddings)} has {ids.shape[0]} rows, but this decoder was exported for calls of "
            f"{' or '.join(map(str, decoder.graphs.rows))}: export it with rows={ids.shape[0]}."
        )
    ids = ids.to(decoder.device, torch.long)
    tokens = Tokens(ids, None if embeddings is None else embeddings.to(decoder.device))
    spans = _spans(session, ids, attention_mask)
    if not all_equal(spans) or spans[0].tokens < ids.shape[1]:
        tokens = tokens.without(_padding(ids, spans))
    check_length(decoder, session, spans)
    if embeddings is None:
        _check_vocabulary(decoder, tokens.ids)
    if position_ids is not None:
        _check_positions(session, ids, spans, position_ids)
    return tokens, spans


def _name(embeddings: torch.Tensor | None) -> str:
    return "input_ids" if embeddings is None else "inputs_embeds"


def _unknown_ids(decoder: Decoder, embeddings: torch.Tensor) -> torch.Tensor:
    """Ids [B, S] that stand for embeddings [B, S, E]."""
    if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point():
        raise InputError("inputs_embeds must be a tensor of floating-point numbers.")
    if embeddings.dim() != 3 or 0 in embeddings.shape:
        raise InputError(
            f"inputs_embeds must be [batch, tokens, size] with no size of 0, not {tuple(embeddings.shape)}."
        )
    decoder.by_ends.others.require_width(embeddings)
    return torch.full(embeddings.shape[:2], UNKNOWN_ID)


def _checked_ids(ids: torch.Tensor | None) -> torch.Tensor:
    """The ids, if they are integers [B, S]."""
    if not isinstance(ids, torch.Tensor):
        raise InputError("input_ids is missing: pass a tensor of token ids [batch, tokens].")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"input_ids must be integers, not {ids.dtype}.")
    if ids.dim() != 2:
        raise InputError(f"input_ids must be [batch, tokens], not of shape {tuple(ids.shape)}.")
    if 0 in ids.shape:
        raise InputError(f"the prompt is empty: input_ids has shape {tuple(ids.shape)}.")
    return ids


def _spans(session: Session, ids: torch.Tensor, mask: torch.Tensor | None) -> list[TokenColumns]:
    """The columns of each row's tokens: all, or those that the mask shows; none for a resting row."""
    batch, length = ids.shape
    spans = [TokenColumns(0, length)] * batch if mask is None else _spans_of_mask(session, ids, mask)
    spans = [TokenColumns(0, 0) if row in session.resting else span for row, span in enumerate(spans)]
    seen = session.row_tokens if session.tokens_seen else (0,) * batch
    for row, span in enumerate(spans):
        if span.tokens == 0 and seen[row] == 0:
            raise InputError(f"row {row} is nothing but padding: leave it out of the batch.")
    if not any(span.tokens for span in spans):
        raise InputError("the call is nothing but padding: attention_mask shows no token in any row.")
    return spans


def _spans_of_mask(session: Session, ids: torch.Tensor, mask: torch.Tensor) -> list[TokenColumns]:
    batch, length = ids.shape
    allowed = {(batch, n) for n in (length, session.columns + length)}
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) not in allowed:
        raise InputError(
            f"attention_mask has shape {tuple(getattr(mask, 'shape', ()))}; expected [batch, tokens], one of "
            f"{sorted(allowed)}."
        )
    if bool(((mask != 0) & (mask != 1)).any()):
        raise InputError("attention_mask must hold 1 for tokens and 0 for padding, nothing else.")
    past = mask[:, :-length].sum(1).long().tolist()
    if mask.shape[1] > length and past != list(session.row_tokens):
        raise InputError(
            f"attention_mask marks {past} earlier tokens in its rows, but the session has read "
            f"{list(session.row_tokens)}. Set it to 0 at padding and after a row's end, or pass the mask of "
            "the new tokens alone."
        )
    spans = spans_of(mask[:, -length:].bool())
    if spans is None:
        raise InputError(
            "attention_mask has zeros between tokens: padding goes to the left or the right of them."
        )
    return spans


def _padding(ids: torch.Tensor, spans: list[TokenColumns]) -> torch.Tensor:
    """[B, S] bool: True outside of each row's columns."""
    column = torch.arange(ids.shape[1], device=ids.device)
    start, end = torch.tensor(spans, device=ids.device).T[..., None]
    return (column < start) | (column >= end)


def check_length(decoder: Decoder, session: Session, spans: Sequence[TokenColumns]) -> None:
    """Refuse a call past the context length; `spans` are the columns of each row's tokens.

    Raises:
        InputError: the model was compiled with overflow="error", and a row would pass it.
    """
    if decoder.config.overflow != "error":
        return
    limit = decoder.sizes.context_length
    for row, span in enumerate(spans):
        seen = session.rows[row].tokens if session.tokens_seen else 0
        if seen + span.tokens > limit:
            raise InputError(
                f"{seen} tokens seen and {span.tokens} new ones exceed the context length of {limit}: "
                "shorten the prompt, or compile with a larger context_length or another overflow."
            )


def _check_vocabulary(decoder: Decoder, ids: torch.Tensor) -> None:
    lowest, highest = torch.stack(ids.aminmax()).tolist()  # one transfer, so one wait for a GPU
    if lowest < 0 or (decoder.vocabulary is not None and highest >= decoder.vocabulary):
        raise InputError(
            f"input_ids go from {lowest} to {highest}, but the model's vocabulary has ids from 0 to "
            f"{(decoder.vocabulary or 0) - 1}."
        )


def _check_positions(
    session: Session, ids: torch.Tensor, spans: list[TokenColumns], positions: torch.Tensor
) -> None:
    batch, length = ids.shape
    if isinstance(positions, torch.Tensor) and tuple(positions.shape) in {(batch, length), (1, length)}:
        given = positions.expand(batch, length).tolist()
        starts = [row.position for row in session.rows] if session.tokens_seen else [0] * batch
        if all(
            row[slice(*span)] == list(range(start, start + span.tokens))
            for row, span, start in zip(given, spans, starts, strict=True)
        ):
            return
    raise InputError(
        f"position_ids must continue from the {session.tokens_seen} tokens seen, in each row and without "
        "counting padding; if you leave them out, they do."
    )


def wanted_indices(logits_to_keep: int | torch.Tensor, length: int) -> torch.Tensor:
    """The indices, int64 on the CPU, of the columns whose logits are wanted, from Hugging Face's argument.

    `logits_to_keep`: 0 for all of the `length` columns, n for the last n, or a tensor of indices.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(logits_to_keep, torch.Tensor):
        chosen = logits_to_keep.cpu().long()
        if chosen.dim() != 1 or len(chosen) == 0:
            raise InputError("logits_to_keep as a tensor must be a non-empty list of token indices.")
        chosen = torch.where(chosen < 0, chosen + length, chosen)
        if bool((chosen < 0).any() or (chosen >= length).any()):
            raise InputError(
                f"logits_to_keep must hold indices of the {length} tokens of this call, "
                f"not {logits_to_keep.tolist()}."
            )
        return chosen
    if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int) or logits_to_keep < 0:
        raise InputError(f"logits_to_keep must be a whole number from 0, not {logits_to_keep!r}.")
    keep = min(logits_to_keep or length, length)
    return torch.arange(length - keep, length)


def as_one_row(ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """The ids as [1, S].

    Raises:
        InputError: they are no ids of one row.
    """
    if not isinstance(ids, torch.Tensor):
        try:
            ids = torch.tensor([operator.index(token) for token in ids], dtype=torch.long)
        except (TypeError, RuntimeError) as error:
            raise InputError(f"give the token ids as a tensor [S] or a list of numbers: {error}.") from error
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise InputError(f"a row reads one text: give token ids [S] or [1, S], not {tuple(ids.shape)}.")
    return ids
