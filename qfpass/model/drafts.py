"""Drafts: tokens that generate lets the model confirm, several in a call, and takes back where it differs."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from ..decoder.decoder import Decoder
from ..decoder.taken_back import most_taken_back
from ..errors import InputError, SessionError
from ..sessions.session import Session
from .continuation import common_length

_READ_KEYS = ("Gemma4Assistant", "Gemma4UnifiedAssistant")  # what the names of such assistants begin with
_KINDS = ("assistant_early_exit", "prompt_lookup_num_tokens", "use_mtp")  # settings that ask for drafts

MOST = 64  # tokens that a session keeps to be taken back, where the number of drafted tokens isn't given


def refuse_drafts(settings: GenerationConfig, named: Mapping[str, Any]) -> None:
    """Refuse drafts that need more of the model than its logits and last hidden states, or two kinds at once.

    Raises:
        InputError: settings of generate ask for them.
    """
    kind = getattr(settings, "speculation_type", None)
    assistant = type(named.get("assistant_model")).__name__
    if kind or assistant.startswith(_READ_KEYS):
        given = f"speculation_type={kind!r}" if kind else assistant
        raise InputError(
            f"{given} is not possible on a compiled decoder: it reads hidden states of many layers or all of "
            "the model's keys. Use another assistant_model, use_mtp or prompt_lookup_num_tokens."
        )
    kinds = [name for name in _KINDS if getattr(settings, name, None) not in (None, False)]
    kinds += ["assistant_model"] if named.get("assistant_model") is not None else []
    if len(kinds) > 1:
        raise InputError(f"{' and '.join(kinds)} each draft in their own way: leave all but one out.")
    if settings.guidance_scale not in (None, 1):
        raise InputError(
            "guidance_scale is not possible with drafts: transformers adds every drafted token to the "
            "text without the prompt, even rejected ones. Leave one of them out."
        )


def refuse_multi_token_drafts(decoder: Decoder, session: Session) -> None:
    """Refuse use_mtp, which reads the last hidden states of a whole text, before its layers are loaded.

    Raises:
        InputError: the decoder gives no hidden states or is a part of one, or the session has read a part of
            the text before.
    """
    if decoder.part is not None:
        raise InputError(
            "use_mtp is not possible on a model over several processes: use assistant_model or "
            "prompt_lookup_num_tokens."
        )
    decoder.by_ends.others.hidden_numbers(-1)
    if session.tokens_seen:
        raise InputError(
            "use_mtp reads the hidden states of a whole text, and this session has read "
            f"{session.tokens_seen} tokens before: give the whole text to a new session, or use "
            "prompt_lookup_num_tokens."
        )


def tokens_kept(decoder: Decoder, session: Session, settings: GenerationConfig) -> int:
    """How many of the newest tokens a session must be able to take back in a generate with drafts.

    Raises:
        SessionError: it can't take any drafted token back.
    """
    most, bound = most_taken_back(session.sizes, decoder.whole_layers)
    if most < 2:
        raise SessionError(
            f"drafts need a session that can take at least 2 tokens back, and this one can take back {most}, "
            f"{bound}: compile with a recent of 8 or more."
        )
    drafted = settings.prompt_lookup_num_tokens
    return min(most, MOST if drafted is None else drafted + 1)


def most_drafted(session: Session, unread: int, context: int | None) -> int:
    """How many drafted tokens a call may read after `unread` others.

    `context`: the most tokens that the session may see; None without a limit.
    """
    fit = session.take_back - 1
    if context is not None:
        fit = min(fit, context - session.tokens_seen - unread)
    return max(0, fit)


def forget_what_differs(session: Session, ids: torch.Tensor) -> None:
    """Take back what the session of a draft model has read that isn't in the text, ids [1, S], any more.

    At least the last id is left to be read.
    """
    if session.batch != len(ids) or session.columns != session.tokens_seen:
        return
    (read,) = session.read_ids.rows()
    same = min(common_length(ids[0].cpu(), read), ids.shape[1] - 1)
    if same < len(read):
        session.crop(same - len(read))
