"""What a call reads, column by column, and what it wants besides logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch

UNKNOWN_ID = -1  # of a token that was given as an embedding


class Ends(NamedTuple):
    """What graphs take in the place of ids, and give beside or in the place of logits.

    Attributes:
        embeddings: they take embeddings [B, S, E].
        axes: they take positions of several axes [A, B, S] for rotations.
        hidden: the hidden states that they give, by transformers' numbers, side by side [B, S, n * E].
        logits: they give the model's own output, behind the hidden states.
    """

    embeddings: bool = False
    axes: bool = False
    hidden: tuple[int, ...] = ()
    logits: bool = True


class Tokens(NamedTuple):
    """The columns of a call.

    Attributes:
        ids: [B, S] int64; `UNKNOWN_ID` where only an embedding is known.
        embeddings: [B, S, E], read in the place of ids; None where ids are read.
        axes: positions [B, S, A] of several axes, for rotations; None for models of one axis.
        hidden, logits: what is wanted; see `Ends`.
    """

    ids: torch.Tensor
    embeddings: torch.Tensor | None = None
    axes: torch.Tensor | None = None
    hidden: tuple[int, ...] = ()
    logits: bool = True

    @property
    def ends(self) -> Ends:
        """What the graphs that read these tokens take and give."""
        return Ends(self.embeddings is not None, self.axes is not None, self.hidden, self.logits)

    @property
    def columns(self) -> int:
        """The number of columns, S."""
        return self.ids.shape[1]

    def between(self, start: int, end: int) -> "Tokens":
        """The columns from `start` up to `end`."""
        return self._each(lambda tensor: tensor[:, start:end])

    def of_row(self, row: int) -> "Tokens":
        """One row, as a batch of one."""
        return self._each(lambda tensor: tensor[row : row + 1])

    def at(self, columns: torch.Tensor) -> "Tokens":
        """The token [B, 1] of each row at its column in `columns` [B]."""
        rows = torch.arange(len(self.ids), device=self.ids.device)
        return self._each(lambda tensor: tensor[rows, columns][:, None])

    def without(self, padding: torch.Tensor) -> "Tokens":
        """The same with zeros where `padding` [B, S] is True."""
        return self._each(
            lambda tensor: tensor.masked_fill(padding.view(*padding.shape, *[1] * (tensor.dim() - 2)), 0)
        )

    def inputs(self) -> list[torch.Tensor]:
        """Inputs of graphs, in memory of their own: ids or embeddings, and any axes [A, B, S]."""
        given = [self.ids if self.embeddings is None else self.embeddings]
        if self.axes is not None:
            given.append(self.axes.permute(2, 0, 1))
        return [tensor.clone(memory_format=torch.contiguous_format) for tensor in given]

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Tokens":
        ids, embeddings, axes = (
            None if tensor is None else change(tensor) for tensor in (self.ids, self.embeddings, self.axes)
        )
        assert ids is not None
        return self._replace(ids=ids, embeddings=embeddings, axes=axes)
