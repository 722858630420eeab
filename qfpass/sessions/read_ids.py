"""The ids that a session has read; generate compares them with its prompt to find what is new."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .rows import TokenColumns

_BLOCKS = 256  # calls that are kept apart before they are joined


class Block(NamedTuple):
    """A call's ids [B, S] int32, and for each row the columns that it has read."""

    ids: torch.Tensor
    spans: tuple[TokenColumns, ...]


class ReadIds(NamedTuple):
    """Every row's ids in order; immutable, `after` returns another one.

    Attributes:
        joined: the older ids, one [n] int32 per row, on the CPU.
        blocks: the newer calls, on the device of their ids, so that a call doesn't wait for a GPU.
    """

    joined: tuple[torch.Tensor, ...] = ()
    blocks: tuple[Block, ...] = ()

    def after(self, ids: torch.Tensor, spans: Sequence[TokenColumns]) -> "ReadIds":
        """These ids and those of a further call, [B, S]; `spans` holds each row's columns."""
        blocks = (*self.blocks, Block(ids.to(torch.int32), tuple(spans)))
        longer = ReadIds(self.joined, blocks)
        return ReadIds(longer.rows()) if len(blocks) >= _BLOCKS else longer

    def rows(self) -> tuple[torch.Tensor, ...]:
        """The ids of each row, [n] int32, on the CPU."""
        if not self.blocks:
            return self.joined
        blocks = [Block(block.ids.cpu(), block.spans) for block in self.blocks]
        return tuple(
            torch.cat([*self.joined[row : row + 1], *(ids[row, slice(*spans[row])] for ids, spans in blocks)])
            for row in range(len(blocks[0].spans))
        )

    def without_last(self, tokens: Sequence[int]) -> "ReadIds":
        """These ids without the last tokens[b] of each row b."""
        left, blocks = list(tokens), list(self.blocks)
        for index in reversed(range(len(blocks))):
            if not any(left):
                break
            ids, spans = blocks[index]
            removed = [min(span.tokens, count) for span, count in zip(spans, left, strict=True)]
            kept = (TokenColumns(s.start, s.end - n) for s, n in zip(spans, removed, strict=True))
            blocks[index] = Block(ids, tuple(kept))
            left = [count - n for count, n in zip(left, removed, strict=True)]
        joined = self.joined
        if any(left):
            joined = tuple(row[: len(row) - count] for row, count in zip(joined, left, strict=True))
        read = (block for block in blocks if any(span.tokens for span in block.spans))
        return ReadIds(joined, tuple(read))

    def chosen(self, rows: Sequence[int]) -> "ReadIds":
        """The ids of the given rows, in this order."""
        held = self.rows()
        return ReadIds(tuple(held[row] for row in rows)) if held else self
