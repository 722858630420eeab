"""Check texts of other lengths than the traced example, for which a forward may take another branch."""

import logging
import re
from collections.abc import Sequence

import torch
from torch import nn

from ..capture.ranks import ALONE, Ranks
from ..errors import CaptureError
from ..graph.captured import BATCH, LENGTH, Captured
from ..upstream.export import sizes_hold
from .length_dependence import LONGEST, texts_of
from .rounding import relative_difference, tolerance_of
from .text import original_logits, positions_of, random_text

log = logging.getLogger(__name__)
SHORT = 256  # tokens: every length up to this one is checked
MOST_READ = 8  # texts that are read, of those for which a condition is false
LONGEST_READ = 8192  # tokens: a longer text isn't read, but refused


def verify_lengths(
    model: nn.Module, captured: Captured, context_length: int | None, ranks: Ranks = ALONE
) -> None:
    """Raise if the graph doesn't compute what the model does for texts of some other length.

    torch.export records conditions on sizes under which the graph is the model's. Where one is false, the
    graph may still give the same logits: the graph and the model both read a few such texts.

    Raises:
        CaptureError: a Python branch on the length goes another way, or a table is too short.
    """
    lengths = _lengths(captured, context_length)
    others = [tokens for tokens in lengths if not _conditions_hold(captured, tokens)]
    others = sorted({tokens for each in ranks.each(others) for tokens in each})
    for tokens in (*_spread(others), 1):  # no condition tells of one token, which a trace sets apart
        if tokens <= LONGEST_READ and ranks.all(_logits_agree(model, captured, tokens)):
            continue
        name, longest = type(model).__name__, max((n for n in lengths if n < tokens), default=1)
        if tokens < LENGTH:
            raise CaptureError(
                f"{name} treats a text of {tokens} token{'s' * (tokens > 1)} differently from one of "
                f"{LENGTH}: its forward branches on the length, and a session can't foresee a text's length."
            )
        raise CaptureError(
            f"{name} takes texts of {longest} tokens, but not of {tokens}: its forward does something else "
            f"there, or a table in it ends. Pass context_length={longest} at most."
        )


def _lengths(captured: Captured, context_length: int | None) -> list[int]:
    numbers = {int(digits) for text in captured.conditions for digits in re.findall(r"\d+", text)}
    short = range(2, min(context_length or LONGEST, SHORT) + 1)
    return sorted({*short, *texts_of(numbers, context_length)})


def _conditions_hold(captured: Captured, tokens: int) -> bool:
    sizes = dict.fromkeys(("input_ids", "position_ids"), (captured.batch or BATCH, tokens))
    return all(sizes_hold(condition, sizes) for condition in captured.conditions)


def _spread(lengths: Sequence[int]) -> list[int]:
    """At most `MOST_READ` of the lengths, evenly spread, with the first and the last."""
    if len(lengths) <= MOST_READ:
        return list(lengths)
    return [lengths[i * (len(lengths) - 1) // (MOST_READ - 1)] for i in range(MOST_READ)]


@torch.no_grad()
def _logits_agree(model: nn.Module, captured: Captured, tokens: int) -> bool:
    log.info("reading %d tokens, since the forward may do something else with a text of this length", tokens)
    ids = random_text(captured, tokens)
    try:
        difference = relative_difference(captured.module(ids, positions_of(ids)), original_logits(model, ids))
    except (RuntimeError, IndexError):  # past a table's end
        return False
    return difference <= tolerance_of(captured.dtype)
