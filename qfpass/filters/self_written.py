"""Calibration text that the model writes itself, so that neither data nor a tokenizer is needed."""

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
    """Text of `tokens` tokens per row, sampled at temperature 1: ids [B, tokens] int64.

    Args:
        read: appends ids [B, S] to the text and returns their logits [B, S, V].
        first: the first token of each row, [B, 1] int64.
        tokens: tokens per row, the first one included.
        progress: show a progress bar.
    """
    generator = torch.Generator(device=first.device).manual_seed(0)
    written = [first]
    for _ in track(range(tokens - 1), "writing calibration text", disable=not progress, transient=True):
        likely = read(written[-1])[:, -1].float().softmax(-1)
        written.append(torch.multinomial(likely, 1, generator=generator))
    return torch.cat(written, dim=1)
