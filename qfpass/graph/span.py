"""Span: what a mask means, learned by evaluating it on positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .mask import Mask

SHORTEST, SHORT_PROBE = 2, 24  # tokens
USUAL_PROBE = 2048  # tokens; reaches past windows that the mask's numbers don't spell out
LINEAR_WITHIN = 1e-2  # of the largest bias: a table in half precision rounds by that much
LONGEST_PROBE = 16384  # tokens; a probe costs this squared in bytes


@dataclass(frozen=True)
class Span:
    """How far back a query sees: causal; within `window` tokens, itself included; or within its chunk.

    A chunk is `chunk` tokens, counted from position 0.
    """

    window: int | None = None
    chunk: int | None = None

    @property
    def reach(self) -> int | None:
        """The most tokens that a query sees; None for all before it."""
        return self.window or self.chunk

    def allows(self, length: int, device: torch.device, offset: int = 0) -> torch.Tensor:
        """The mask [length, length] that this span means at positions from `offset`: True where seen."""
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
class Meaning:
    """What the masks of an attention do: the span they show, and the slopes of a bias by distance.

    `slopes`, one number a query head (or one for all), add slope * (key position - query position).
    """

    span: Span
    slopes: tuple[float, ...] | None = None


def learn_meaning(
    module: fx.GraphModule,
    masks: Sequence[fx.Node],
    factors: Sequence[fx.Node],
    beside_sink: bool,
    site: str,
    context_length: int | None,
) -> Meaning:
    """What the masks (nodes of `module`'s graph) of the attention named `site` do together.

    `factors` multiply the logits before the masks and must be 1 wherever these show a key.
    A bias may differ by a constant a query, which a softmax doesn't see, unless it is `beside_sink`.

    They are evaluated for texts shorter and longer than each of their numbers, and for a part of a text, and
    compared with causal, causal-within-w and causal-within-chunks.

    Raises:
        UnsupportedOpError: they are none of these, have a bias that isn't linear in the distance, depend
            on the text, or are too long to evaluate.
    """
    mask = Mask(module, masks, factors, site)
    longest, *others = _lengths(mask, context_length)
    shown, bias = mask.evaluate(longest, 0)
    span = _read_span(shown, site)
    slopes = None if bias is None else _read_slopes(bias, site)
    part = (min(SHORT_PROBE, longest - 1), 7)
    for length, offset in [(longest, 0), *((length, 0) for length in others), part]:
        shown, bias = (shown, bias) if length == longest else mask.evaluate(length, offset)
        # A mask that counts a chunk by index means the same, for a text starts at position 0.
        if not any(bool((shown == span.allows(length, mask.device, start)).all()) for start in {0, offset}):
            raise UnsupportedOpError(
                f"{site}: its mask is neither causal nor causal within a fixed window or chunk "
                f"(compared at {length} tokens), so its keys can't be bounded safely."
            )
        if not _is_linear(bias, slopes, beside_sink):
            raise _not_linear(site)
    return Meaning(span, slopes)


def _lengths(mask: Mask, context_length: int | None) -> list[int]:
    """Lengths of texts, in tokens, to evaluate the mask at, the longest first.

    It is past every window that the mask's numbers could mean. The others lie on either side of each number,
    where a mask may begin to show other keys.
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
    """The only span that fits the queries that see the first key, and those that see the second."""
    length = shown.shape[-1]
    if not bool(shown[-1].any()):
        raise UnsupportedOpError(f"{site}: its mask hides every key from the last of {length} tokens.")
    size = int(shown[:, 0].sum())
    if size == 0 or size == length:
        return Span()
    by_window = bool(shown[size, 1]) if size > 1 else True
    return Span(window=size) if by_window else Span(chunk=size)


ROWS_READ = 16


def _read_slopes(bias: torch.Tensor, site: str) -> tuple[float, ...]:
    """One slope a head, from the newest token's bias on itself and on the first."""
    newest = bias[:, -1]
    slopes = (newest[:, -1] - newest[:, 0]) / (bias.shape[2] - 1)
    if not bool(slopes.isfinite().all()):
        raise _not_linear(site)
    return tuple(slopes.tolist())


def _is_linear(bias: torch.Tensor | None, slopes: tuple[float, ...] | None, from_nothing: bool) -> bool:
    """Whether every key before a query differs in bias from the query's own by slope * distance.

    `from_nothing`: and the query's own is 0.
    """
    if bias is None or slopes is None:
        return (bias is None) == (slopes is None)
    length = bias.shape[2]
    rows = torch.linspace(
        0, length - 1, min(length, ROWS_READ), dtype=torch.float64, device=bias.device
    ).long()
    chosen = bias[:, rows] if bias.shape[1] > 1 else bias.expand(-1, len(rows), -1)
    distance = torch.arange(length, device=bias.device) - rows[:, None]
    expected = torch.tensor(slopes, dtype=torch.float32, device=bias.device)[:, None, None] * distance
    own = chosen.gather(2, rows[None, :, None].expand(len(chosen), -1, 1))
    own = torch.zeros_like(own) if from_nothing else own
    error = (chosen - own - expected).masked_fill(distance > 0, 0.0).abs().max()
    return bool(error <= LINEAR_WITHIN * (1 + expected.abs().max()))


def _not_linear(site: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{site}: its mask adds a bias to the attention that isn't linear in the distance (as ALiBi's is), "
        "so the pass can't recompute it from stored positions."
    )
