"""Text that a model writes itself, for calibration without data or tokenizer."""

from collections.abc import Callable

import torch
from rich.progress import track

ROWS, TOKENS = 8, 256


def write_text(
    read: Callable[[torch.Tensor], torch.Tensor],
    first: torch.Tensor,
    tokens: int,
    progress: bool,
) -> torch.Tensor:
    """Sample `tokens` tokens a row at temperature 1, all rows in one batch: [B, tokens] int64.

    Args:
        read: reads ids [B, S] where the text stands and gives logits [B, S, V].
        first: the first token of each row, [B, 1] int64.
    """
    generator = torch.Generator(device=first.device).manual_seed(0)
    written = [first]
    for _ in track(range(tokens - 1), "writing calibration text", disable=not progress, transient=True):
        likely = read(written[-1])[:, -1].float().softmax(-1)
        written.append(torch.multinomial(likely, 1, generator=generator))
    return torch.cat(written, dim=1)
