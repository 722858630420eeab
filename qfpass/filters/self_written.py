"""Text that the model writes itself, so that neither data nor a tokenizer is needed."""

from collections.abc import Sequence

import torch

from ..attention.find import Attention
from ..graph.captured import Captured, id_limit
from ..rewriting.uncompressed import Uncompressed
from ..waits import Wait


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
) -> torch.Tensor:
    """Texts of `tokens` tokens a row, sampled at temperature 1: ids [B, tokens] int64.

    A model that predicts no tokens can't write: its texts are random ids.

    Args:
        first: the first tokens of each row, [B, n] int64.
        most_likely: a token is drawn from so many; None for all.
        seed: of the sampling.
        progress: say how far it is.
    """
    generator = torch.Generator(device=first.device).manual_seed(seed)
    if not captured.predicts:
        shape = (len(first), tokens - first.shape[1])
        more = torch.randint(id_limit(captured.module), shape, generator=generator, device=first.device)
        return torch.cat([first, more], dim=1)
    program = Uncompressed(captured, attentions, capacity=tokens, batch=len(first))
    written = [first]
    with Wait(f"the model writes {len(first)} texts of {tokens} tokens", shown=progress) as wait:
        for _ in wait.count(range(tokens - first.shape[1])):
            logits = program.read(written[-1])[:, -1].float()
            if most_likely is not None:
                lowest = logits.topk(min(most_likely, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < lowest, float("-inf"))
            written.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(written, dim=1)
