"""What a scheduler refuses before anything is read."""

import math

from ..decoder.decoder import Decoder
from ..errors import InputError
from .sampling import Sampling


def context_length(decoder: Decoder) -> int | None:
    """The most tokens of a text and its answer; None if texts may go on past the context."""
    return decoder.sizes.context_length if decoder.config.overflow == "error" else None


def check_request(
    decoder: Decoder, ids: list[int], sampling: Sampling, max_new_tokens: int, deadline: float | None
) -> None:
    """Refuse a request that can't be answered.

    Raises:
        InputError: what is wrong with it.
    """
    if not ids:
        raise InputError("the prompt is empty: give at least one token.")
    vocabulary, context = decoder.vocabulary, context_length(decoder)
    if min(ids) < 0 or (vocabulary is not None and max(ids) >= vocabulary):
        raise InputError(f"ids must lie between 0 and {vocabulary}, not between {min(ids)} and {max(ids)}.")
    if vocabulary is not None and any(not 0 <= token < vocabulary for token in sampling.logit_bias):
        raise InputError(f"logit_bias must name token ids between 0 and {vocabulary}.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise InputError(f"deadline must be a number of seconds greater than 0, not {deadline!r}.")
    if context is not None and len(ids) > context:
        raise InputError(f"the prompt has {len(ids)} tokens, and the context {context}: shorten it.")
