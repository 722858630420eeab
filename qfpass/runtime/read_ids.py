"""The ids that a session has read, by which generate tells a text that goes on from one that differs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .rows import Span

_BLOCKS = 256  # calls that are kept as they came


class Block(NamedTuple):
    """A call's ids [B, S] int32 and which of them each row has read."""

    ids: torch.Tensor
    spans: tuple[Span, ...]


class ReadIds(NamedTuple):
    """Every row's ids in order. It never changes: `after` gives another.

    Attributes:
        joined: [n] int32 a row, the older ids.
        blocks: the newer calls, on the device that they came on: nothing waits for a GPU.
    """

    joined: tuple[torch.Tensor, ...] = ()
    blocks: tuple[Block, ...] = ()

    def after(self, ids: torch.Tensor, spans: Sequence[Span]) -> "ReadIds":
        """These and a call's ids [B, S]."""
        blocks = (*self.blocks, Block(ids.to(torch.int32), tuple(spans)))
        longer = ReadIds(self.joined, blocks)
        return ReadIds(longer.rows()) if len(blocks) >= _BLOCKS else longer

    def rows(self) -> tuple[torch.Tensor, ...]:
        """[n] int32 a row, on the CPU."""
        if not self.blocks:
            return self.joined
        blocks = [Block(block.ids.cpu(), block.spans) for block in self.blocks]
        return tuple(
            torch.cat([*self.joined[row : row + 1], *(ids[row, slice(*spans[row])] for ids, spans in blocks)])
            for row in range(len(blocks[0].spans))
        )

    def chosen(self, rows: Sequence[int]) -> "ReadIds":
        """Those of these rows, in this order."""
        held = self.rows()
        return ReadIds(tuple(held[row] for row in rows)) if held else self
