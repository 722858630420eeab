"""Reads a short text for the sizes of key channels, from which the factors of smoothing follow."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from ..attention.find import Attention
from ..graph.captured import Captured, id_limit
from ..store.smoothing import smoothing_factors
from .calibrate import spread_starts
from .operand_reader import operand_reader

ROWS, TOKENS = 8, 64


@torch.no_grad()
def read_smoothing(
    captured: Captured, attentions: Sequence[Attention], context_length: int
) -> tuple[torch.Tensor, ...]:
    """The factors [Hkv, D] of each attention's keys, in the model's dtype, on its device.

    Random tokens are read at positions spread over the context, since a rotary embedding moves a large
    channel's numbers to the other channel of its pair and back.
    """
    shown = defaultdict[int, list[tuple[torch.Tensor, torch.Tensor]]](list)

    def show(attention: Attention, query: torch.Tensor, key: torch.Tensor) -> None:
        shown[attention.index].append((query, key))

    reader = operand_reader(captured.module, attentions, show)
    generator = torch.Generator().manual_seed(0)
    tokens = min(TOKENS, context_length)
    ids = torch.randint(id_limit(captured.module), (ROWS, tokens), generator=generator)
    batches = ids.split(captured.batch or ROWS)
    for rows, start in zip(batches, spread_starts([b.shape for b in batches], context_length), strict=True):
        positions = start[:, None] + torch.arange(tokens)
        reader(rows.to(captured.device), positions.to(captured.device))
    return tuple(
        smoothing_factors(*map(torch.cat, zip(*shown[a.index], strict=True))).to(captured.dtype)
        for a in attentions
    )
