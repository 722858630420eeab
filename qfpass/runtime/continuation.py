"""What of the ids given to generate a session has yet to read."""

import torch

from ..errors import InputError
from .session import Session


def columns_to_read(session: Session, ids: torch.Tensor, mask: torch.Tensor | None) -> int:
    """How many columns of ids [B, S], at their end, are new to the session.

    All of a session without tokens. A mask of the whole text, longer than the ids, says that all are new.
    Else ids that begin with what was read are the whole text; ids whose first token differs in every row are
    new; whatever else is neither.

    Raises:
        InputError: a text that differs from what was read, with the token where it does, or has nothing new.
    """
    batch, length = ids.shape
    same_batch = session.tokens_seen and batch == session.batch
    if not same_batch or (mask is not None and tuple(mask.shape) == (batch, session.columns + length)):
        return length
    texts, read = _texts(ids, mask), session.read.rows()
    alike = [_common(text, had) for text, had in zip(texts, read, strict=True)]
    if all(same == len(had) for same, had in zip(alike, read, strict=True)) and length > session.columns:
        return length - session.columns
    if all(same == 0 for same, had in zip(alike, read, strict=True) if len(had)):
        return length
    for row, (same, text, had) in enumerate(zip(alike, texts, read, strict=True)):
        if same < min(len(text), len(had)):
            raise InputError(
                f"row {row} begins like the {len(had)} tokens that the session has read and differs at "
                f"token {same}: {int(text[same])} in the place of {int(had[same])}. A session can't take "
                "tokens back: make a new session, or, if these ids are new ones that go on after what was "
                f"read, say so by an attention_mask of [{batch}, {session.columns + length}], for both."
            )
    raise InputError(
        f"the session has read all of these ids already ({session.row_tokens} tokens in its rows), and can't "
        "take the last one back: give what follows them too."
    )


def _texts(ids: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Each row's tokens on the CPU, without padding."""
    ids = ids.cpu()
    if mask is None or tuple(mask.shape) != tuple(ids.shape):
        return list(ids)
    return [row[shown.bool()] for row, shown in zip(ids, mask.cpu(), strict=True)]


def _common(text: torch.Tensor, had: torch.Tensor) -> int:
    """How many first tokens are the same."""
    length = min(len(text), len(had))
    differs = (text[:length] != had[:length]).nonzero()
    return int(differs[0]) if len(differs) else length
