"""Span: what a mask means, learned by evaluating it on positions."""

from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .mask import Mask

SHORT_PROBE = 24  # tokens
USUAL_PROBE = 2048  # tokens; reaches past windows that the mask's numbers don't spell out
LONGEST_PROBE = 16384  # tokens; a probe costs this squared in bytes


@dataclass(frozen=True)
class Span:
    """How far back a query sees: causal, within `window` tokens (itself included) if one is given."""

    window: int | None = None

    def allows(self, length: int, device: torch.device) -> torch.Tensor:
        """The boolean mask [length, length] that this span means: True where a key is seen."""
        place = torch.arange(length, device=device)
        distance = place[:, None] - place[None, :]
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def __str__(self) -> str:
        return "causal" if self.window is None else f"causal, window {self.window}"


def learn_span(module: fx.GraphModule, node: fx.Node, site: str, context_length: int | None) -> Span:
    """The span of the mask `node` of `module`'s graph, as used by the attention named `site`.

    The mask is evaluated at two lengths, the longer past every window that its numbers could mean, and
    from two positions, and compared with causal and causal-within-w.

    Raises:
        UnsupportedOpError: it is neither, has a bias, depends on the text, or is too long to evaluate.
    """
    mask = Mask(module, node, site)
    long, short = _lengths(mask, context_length)
    span = _read_last_row(mask.allowed(long, 0), site)
    for length, offset in ((long, 0), (short, 0), (short, 7)):
        if not bool((mask.allowed(length, offset) == span.allows(length, mask.device)).all()):
            raise UnsupportedOpError(
                f"{site}: its mask is neither causal nor causal within a fixed window "
                f"(compared at {length} tokens), so its keys can't be bounded safely."
            )
    return span


def _lengths(mask: Mask, context_length: int | None) -> tuple[int, int]:
    """Two lengths in tokens to evaluate the mask at."""
    limit = context_length or LONGEST_PROBE
    reach = [n for n in mask.numbers if 1 < n < limit]
    if any(n > LONGEST_PROBE for n in reach):
        raise UnsupportedOpError(
            f"{mask.site}: its mask may hold a window of {max(reach)} tokens, longer than the "
            f"{LONGEST_PROBE} that can be evaluated: pass a smaller context_length."
        )
    long = min(max([USUAL_PROBE, *(n + 2 for n in reach)]), max(limit, SHORT_PROBE))
    if mask.table_length is not None:
        long = min(long, mask.table_length)
    return long, min(SHORT_PROBE, long - 1)


def _read_last_row(allowed: torch.Tensor, site: str) -> Span:
    """The only span that the keys seen by the last query allow."""
    length, seen = allowed.shape[-1], int(allowed[-1].sum())
    if seen == 0:
        raise UnsupportedOpError(f"{site}: its mask hides every key from the last of {length} tokens.")
    return Span(window=seen if seen < length else None)
