"""Session files of a model that may be split over processes: one file, with all heads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..capture.ranks import ALONE, Ranks
from ..graph.shards import Shards
from ..store.store_kind import with_tensors
from . import files
from .hf_cache import State
from .rows import Row
from .stores import Store

HEADS = 1  # the dimension of heads in every store's tensors [B, Hkv, C, ...]


def write(path: str | Path, state: State, belongs_to: Mapping[str, str], shards: Shards | None) -> None:
    """Write a session's state; the first of several processes writes, and all of them must call it.

    Raises:
        SessionError: the file can't be written; in another process a RanksError.
    """
    stores = [
        with_tensors(type(s), (shards.all_heads(tensor, HEADS) for tensor in s)) if shards else s
        for s in state.stores
    ]

    def write_first() -> None:
        if shards is None or shards.rank == 0:
            files.write(path, stores, state.rows, state.columns, state.read_ids.rows(), belongs_to)

    _ranks_of(shards).together(write_first)


def read(
    path: str | Path, kinds: Sequence[type[Store]], belongs_to: Mapping[str, str], shards: Shards | None
) -> tuple[list[Store], tuple[Row, ...], int, tuple[torch.Tensor, ...]]:
    """What `files.read` gives, of this process's heads.

    Raises:
        SessionError: see `files.read`; in another process a RanksError.
    """
    held, rows, columns, ids = _ranks_of(shards).together(lambda: files.read(path, kinds, belongs_to))
    own = [
        with_tensors(type(s), (shards.own_heads(tensor, HEADS) for tensor in s)) if shards else s
        for s in held
    ]
    return own, rows, columns, ids


def _ranks_of(shards: Shards | None) -> Ranks:
    return Ranks([shards.group]) if shards else ALONE
