"""Find which of the ids given to generate a session has not read yet."""

from collections.abc import Sequence

import torch

from ..errors import InputError
from ..sessions.session import Session
from ..sessions.tokens import UNKNOWN_ID


def columns_to_read(session: Session, ids: torch.Tensor, mask: torch.Tensor | None) -> int:
    """The number of columns at the end of ids [B, S] that the session has not read.

    All are new to a session without tokens or of another number of rows (which `check_inputs` refuses), or
    if the mask [B, earlier columns + S] covers the whole text.
    Otherwise ids that begin with everything read are the whole text, and only the rest is new. Ids whose
    first token differs from what was read, in every row, are all new. Anything else is refused. The ids of
    embeddings that were read are unknown and equal no other.

    Raises:
        InputError: the ids begin like what was read but differ later (the message says where), or hold
            nothing new.
    """
    batch, length = ids.shape
    same_batch = session.tokens_seen and batch == session.batch
    if not same_batch or (mask is not None and tuple(mask.shape) == (batch, session.columns + length)):
        return length
    read = session.read_ids.rows()
    texts = _without_padding(ids, mask, read, session.columns)
    common = [common_length(text, had) for text, had in zip(texts, read, strict=True)]
    if all(same == len(had) for same, had in zip(common, read, strict=True)) and length > session.columns:
        return length - session.columns
    if all(same == 0 for same, had in zip(common, read, strict=True) if len(had)):
        return length
    for row, (same, text, had) in enumerate(zip(common, texts, read, strict=True)):
        if same < len(had) and had[same] == UNKNOWN_ID:
            raise InputError(
                f"row {row} can't be compared with what the session has read, since that has embeddings "
                f"from token {same} on, and their ids aren't known. Give the new ids alone, with an "
                f"attention_mask [{batch}, {session.columns} + new ids] for the earlier tokens and the new."
            )
        if same < min(len(text), len(had)):
            raise InputError(
                f"row {row} begins like the {len(had)} tokens that the session has read, but differs at "
                f"token {same}: {int(text[same])} instead of {int(had[same])}. Make a new session, or take "
                "the differing tokens back with crop. If all of these ids are new and continue the text, "
                f"pass an attention_mask [{batch}, {session.columns + length}] for the earlier tokens and "
                "the new."
            )
    raise InputError(
        f"the session has read all of these ids already ({session.row_tokens} tokens in its rows): give "
        "what follows them too, or take the last one back with crop(-1)."
    )


def _without_padding(
    ids: torch.Tensor, mask: torch.Tensor | None, read: Sequence[torch.Tensor], columns: int
) -> list[torch.Tensor]:
    """The tokens [n] of each row, on the CPU, without padding.

    Without a mask, columns before a row's earlier tokens are padding if the session, which has seen `columns`
    columns, has dropped as many.
    """
    ids = ids.cpu()
    if mask is not None and tuple(mask.shape) == tuple(ids.shape):
        return [row[shown.bool()] for row, shown in zip(ids, mask.cpu(), strict=True)]
    padding = [columns - len(had) for had in read]
    return [
        row[dropped:] if torch.equal(row[dropped:columns], had) else row
        for row, had, dropped in zip(ids, read, padding, strict=True)
    ]


def common_length(text: torch.Tensor, had: torch.Tensor) -> int:
    """The number of leading tokens that `text` [n] and `had` [m] have in common."""
    length = min(len(text), len(had))
    differs = (text[:length] != had[:length]).nonzero()
    return int(differs[0]) if len(differs) else length
