"""Text that the model writes itself, so that neither data nor a tokenizer is needed."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from ..attention.find import Attention
from ..capture.ranks import ALONE, Ranks
from ..graph.captured import Captured, id_limit
from ..rewriting.uncompressed import Uncompressed
from ..waits import Wait

# Each token of a text takes a reading of all weights, so texts are many and short; docs/quality/notebook.md
# has what that changes.
ROWS, TOKENS = 64, 16
TOKENS_OF_ONE_ROW = 256  # of a graph that is made for few rows
SECONDS, LEAST = 20.0, 8  # after so long no more is written, but for the least tokens of a text


class OwnText:
    """Short texts of a model's own, written when they are first asked for; what is measured reads them.

    A slow model writes less, so that measuring it takes no longer than compiling it. Processes that run the
    model together, `ranks`, write alike.

    Args:
        context_length: no text is longer.
    """

    def __init__(
        self, captured: Captured, attentions: Sequence[Attention], context_length: int, ranks: Ranks = ALONE
    ) -> None:
        self._captured, self._attentions, self._ranks = captured, attentions, ranks
        self._rows = captured.batch or ROWS
        self._tokens = min(TOKENS if self._rows >= ROWS else TOKENS_OF_ONE_ROW, context_length)

    @cached_property
    def ids(self) -> torch.Tensor:
        """The texts, [B, S] int64."""
        stop = time.monotonic() + SECONDS

        def goes_on(written: int) -> bool:
            return self._ranks.all(written < LEAST or time.monotonic() < stop)

        first = random_starts(self._captured, ROWS)
        return write_text(
            self._captured, self._attentions, first, self._tokens, progress=True, goes_on=goes_on
        )

    def joined(self, rows: int, tokens: int) -> torch.Tensor:
        """The texts joined to longer ones, [B, S]; B is at most `rows`, S at most `tokens`.

        If less was written than there should be, there are fewer rows. A graph that is made for a number of
        rows gets that many.
        """
        ids = self.ids.flatten()
        rows = self._captured.batch or max(1, rows * len(ids) // (self._rows * self._tokens))
        length = min(tokens, len(ids) // rows)
        return ids[: rows * length].view(rows, length)


def random_starts(captured: Captured, rows: int) -> torch.Tensor:
    """A random first token for each row, [B, 1] int64; a graph made for a number of rows gets that many."""
    generator = torch.Generator().manual_seed(0)
    shape = (captured.batch or rows, 1)
    return torch.randint(id_limit(captured.module), shape, generator=generator).to(captured.device)


@torch.no_grad()
def write_text(
    captured: Captured,
    attentions: Sequence[Attention],
    first: torch.Tensor,
    tokens: int,
    *,
    most_likely: int | None = None,
    seed: int = 0,
    progress: bool = False,
    goes_on: Callable[[int], bool] = lambda written: True,
) -> torch.Tensor:
    """Texts of `tokens` tokens a row, sampled at temperature 1: ids [B, tokens] int64.

    A model that predicts no tokens can't write: its texts are random ids.

    Args:
        first: the first tokens of each row, [B, n] int64.
        most_likely: a token is drawn from so many; None for all.
        seed: of the sampling.
        progress: say how far it is.
        goes_on: asked before every token, with how many each row has; texts end where it says False.
    """
    generator = torch.Generator(device=first.device).manual_seed(seed)
    if not captured.predicts:
        shape = (len(first), tokens - first.shape[1])
        more = torch.randint(id_limit(captured.module), shape, generator=generator, device=first.device)
        return torch.cat([first, more], dim=1)
    program = Uncompressed(captured, attentions, capacity=tokens, batch=len(first))
    written = [first]
    with Wait(f"the model writes {len(first)} texts of {tokens} tokens", shown=progress) as wait:
        for done in wait.count(range(first.shape[1], tokens)):
            if not goes_on(done):
                break
            logits = program.read(written[-1])[:, -1].float()
            if most_likely is not None:
                lowest = logits.topk(min(most_likely, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < lowest, float("-inf"))
            written.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(written, dim=1)
