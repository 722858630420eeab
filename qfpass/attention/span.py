"""Learn which keys a mask shows and which bias it adds, by evaluating it on positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..kernels.distance_bias import DistanceBias
from .distance_bias import is_distance_bias, not_by_distance, read_distance_bias
from .mask import MaskProgram

SHORTEST, SHORT_PROBE = 2, 24  # tokens
USUAL_PROBE = 2048  # tokens; longer than windows whose length isn't among the mask's numbers
LONGEST_PROBE = 16384  # tokens; a mask of that length takes this squared in bytes


@dataclass(frozen=True)
class Span:
    """The keys that a query sees: its own and all before it, or those of them in its window or chunk.

    Attributes:
        window: tokens, the query's own included; None for no window.
        chunk: tokens of a chunk, counted from position 0; None for no chunks.
    """

    window: int | None = None
    chunk: int | None = None

    @property
    def reach(self) -> int | None:
        """The most tokens that a query sees; None for no bound."""
        return self.window or self.chunk

    def allows(self, length: int, device: torch.device, offset: int = 0) -> torch.Tensor:
        """This span's mask [length, length] for positions from `offset`, bool: True where a key is seen."""
        place = torch.arange(offset, offset + length, device=device)
        distance = place[:, None] - place[None, :]
        seen = distance >= 0
        if self.chunk is not None:
            seen &= place[:, None] // self.chunk == place[None, :] // self.chunk
        return seen if self.window is None else seen & (distance < self.window)

    def __str__(self) -> str:
        if self.chunk is not None:
            return f"causal, chunks of {self.chunk}"
        return "causal" if self.window is None else f"causal, window {self.window}"


@dataclass(frozen=True)
class MaskMeaning:
    """What the masks of an attention do: the span that they show, and the bias by distance that they add."""

    span: Span
    bias: DistanceBias | None = None


def learn_mask_meaning(
    module: fx.GraphModule,
    masks: Sequence[fx.Node],
    factors: Sequence[fx.Node],
    beside_sink: bool,
    site: str,
    context_length: int | None,
) -> MaskMeaning:
    """The span and the bias of the attention named `site`, learned from its masks, nodes of `module`'s graph.

    The masks are evaluated for texts shorter and longer than each of their numbers, and for a part of a text.
    They must equal a causal mask, or one within a window or chunks.

    Args:
        factors: nodes that multiply the logits before the masks; they must be 1 where a key is shown.
        beside_sink: whether there is a learned sink. Without one, the bias may have a constant per query,
            which leaves a softmax unchanged.
        context_length: the longest text to evaluate, in tokens; None if unknown.

    Raises:
        UnsupportedOpError: the masks are none of these, depend on the token ids, are too long to evaluate, or
            add a bias that isn't linear in the distance.
    """
    mask = MaskProgram(module, masks, factors, site)
    longest, *others = _lengths(mask, context_length)
    shown, added = mask.evaluate(longest, 0)
    span, bias = _read_span(shown, site), read_distance_bias(added, site)
    part = (min(SHORT_PROBE, longest - 1), 7)
    for length, offset in [(longest, 0), *((length, 0) for length in others), part]:
        shown, added = (shown, added) if length == longest else mask.evaluate(length, offset)
        # A mask may count from the call's first token: that is position 0 in a whole text.
        if not any(bool((shown == span.allows(length, mask.device, start)).all()) for start in {0, offset}):
            raise UnsupportedOpError(
                f"{site}: its mask is neither causal nor causal within a fixed window or chunk "
                f"(compared at {length} tokens), so its keys can't be bounded safely."
            )
        if not is_distance_bias(added, bias, beside_sink):
            raise not_by_distance(site)
    return MaskMeaning(span, bias)


def _lengths(mask: MaskProgram, context_length: int | None) -> list[int]:
    """Lengths of texts, in tokens, at which to evaluate the mask, the longest first.

    The longest is past every window that the mask's numbers could mean. The others lie on either side of each
    number, where a mask may begin to show other keys.
    """
    limit = context_length or LONGEST_PROBE
    reach = [n for n in mask.numbers if 1 < n < limit]
    if any(n > LONGEST_PROBE for n in reach):
        raise UnsupportedOpError(
            f"{mask.site}: its mask may hold a window of {max(reach)} tokens, longer than the "
            f"{LONGEST_PROBE} that can be evaluated: pass a smaller context_length."
        )
    longest = min(max([USUAL_PROBE, *(n + 2 for n in reach)]), max(limit, SHORT_PROBE))
    if mask.table_length is not None:
        longest = min(longest, mask.table_length)
    lengths = {SHORT_PROBE, *(2**n for n in range(1, 11)), longest - 1}
    for number in reach:  # of a long text, which takes its length squared, the two sides alone
        lengths |= {number + more for more in ((-1, 0, 1, 2) if number <= USUAL_PROBE else (-1, 2))}
    return [longest, *sorted(n for n in lengths if SHORTEST <= n < longest)]


def _read_span(shown: torch.Tensor, site: str) -> Span:
    """The only span that a mask [length, length] can mean; whether it does is for the caller to compare."""
    length = shown.shape[-1]
    if not bool(shown[-1].any()):
        raise UnsupportedOpError(f"{site}: its mask hides every key from the last of {length} tokens.")
    size = int(shown[:, 0].sum())
    if size == 0 or size == length:
        return Span()
    # The first query that doesn't see the first key sees the second one in a window, not in a new chunk.
    by_window = bool(shown[size, 1]) if size > 1 else True
    return Span(window=size) if by_window else Span(chunk=size)
