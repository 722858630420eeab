"""Session files of a model that may be split over processes: one file, with all layers and heads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..capture.ranks import ALONE, Ranks
from ..graph.part import Part
from ..store.layer import Layer
from ..store.store_kind import with_tensors
from . import files
from .hf_cache import State
from .rows import Row
from .stores import Store

HEADS = 1  # the dimension of heads in every store's tensors [B, Hkv, C, ...]


def write(
    path: str | Path,
    state: State,
    layers: Sequence[Layer],
    belongs_to: Mapping[str, str],
    part: Part | None,
) -> None:
    """Write a session's state; the first of several processes writes, and all of them must call it.

    Raises:
        SessionError: the file can't be written; in another process a RanksError.
    """
    tensors = files.named(state.stores, layers)
    tensors = part.joined(tensors, HEADS) if part else tensors

    def write_first() -> None:
        if part is None or part.rank == 0:
            files.write(path, tensors, state.rows, state.columns, state.read_ids.rows(), belongs_to)

    ranks_of(part).together(write_first)


def read(
    path: str | Path, layers: Sequence[Layer], belongs_to: Mapping[str, str], part: Part | None
) -> tuple[list[Store], tuple[Row, ...], int, tuple[torch.Tensor, ...]]:
    """What `files.read` gives, of this process's layers and heads.

    Raises:
        SessionError: see `files.read`; in another process a RanksError.
    """
    held, rows, columns, ids = ranks_of(part).together(lambda: files.read(path, layers, belongs_to))
    own = [
        with_tensors(type(s), (part.own_heads(tensor, HEADS) for tensor in s)) if part else s for s in held
    ]
    return own, rows, columns, ids


def ranks_of(part: Part | None) -> Ranks:
    """The processes that run a session's model together."""
    return Ranks([part.group]) if part else ALONE
