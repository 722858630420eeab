"""Check a call's arguments before anything changes."""

import torch

from ..errors import InputError, SessionError
from .decoder import Decoder
from .session import Session


def check_session(decoder: Decoder, session: object) -> None:
    """Refuse a cache that isn't a session, or a session of another model."""
    if not isinstance(session, Session):
        raise SessionError(
            f"past_key_values is a {type(session).__name__}, not a session of this model: make one "
            "with model.session()."
        )
    if not session.belongs_to(decoder):
        raise SessionError("the session belongs to another compiled model: use this one's session().")


def check_inputs(
    decoder: Decoder,
    session: Session,
    ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor:
    """The ids as [B, S] int64 on the decoder's device, with all else checked against the session."""
    if not isinstance(ids, torch.Tensor):
        raise InputError("input_ids is missing: pass a tensor of token ids [batch, tokens].")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"input_ids must be integers, not {ids.dtype}.")
    if ids.dim() != 2:
        raise InputError(f"input_ids must be [batch, tokens], not of shape {tuple(ids.shape)}.")
    if 0 in ids.shape:
        raise InputError(f"the prompt is empty: input_ids has shape {tuple(ids.shape)}.")
    _check_length(decoder, session, ids)
    if attention_mask is not None:
        _check_mask(session, ids, attention_mask)
    if position_ids is not None:
        _check_positions(session, ids, position_ids)
    return ids.to(decoder.device, torch.long)


def _check_length(decoder: Decoder, session: Session, ids: torch.Tensor) -> None:
    if session.tokens_seen and ids.shape[0] != session.batch:
        raise InputError(f"the session holds {session.batch} rows, input_ids has {ids.shape[0]}.")
    total, limit = session.tokens_seen + ids.shape[1], decoder.sizes.context_length
    if total > limit:
        raise InputError(
            f"{session.tokens_seen} tokens seen and {ids.shape[1]} new ones exceed the context length "
            f"of {limit}: shorten the prompt, or compile with a larger context_length."
        )


def _check_mask(session: Session, ids: torch.Tensor, mask: torch.Tensor) -> None:
    allowed = {(ids.shape[0], n) for n in (ids.shape[1], session.tokens_seen + ids.shape[1])}
    if tuple(mask.shape) not in allowed:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; expected [batch, tokens], one of "
            f"{sorted(allowed)}."
        )
    if bool((mask != 1).any()):
        raise InputError(
            "attention_mask has zeros: every token must be attended. Run rows of different lengths "
            "one by one, without padding."
        )


def _check_positions(session: Session, ids: torch.Tensor, positions: torch.Tensor) -> None:
    seen, length = session.tokens_seen, ids.shape[1]
    expected = torch.arange(seen, seen + length, device=positions.device)
    if positions.shape[-1] != length or bool((positions != expected).any()):
        raise InputError(
            f"position_ids must go on from the {seen} tokens seen ({seen} to {seen + length - 1}); "
            "leave them out and they do."
        )
