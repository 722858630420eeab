"""The stores of a session whose heads are split over processes, as files hold them: with all heads."""

from collections.abc import Iterable

from ..capture.ranks import ALONE, Ranks
from ..graph.shards import Shards
from ..store.store_kind import with_tensors
from .stores import Store

HEADS = 1  # the dimension of heads in every store's tensors [B, Hkv, C, ...]


def ranks_of(shards: Shards | None) -> Ranks:
    """The processes that have a part of each session; this one alone if the model is whole."""
    return Ranks([shards.group]) if shards else ALONE


def with_all_heads(stores: Iterable[Store], shards: Shards | None) -> list[Store]:
    """Stores of all heads, of which `stores` have this process's. All processes must call it."""
    if shards is None:
        return list(stores)
    return [with_tensors(type(s), (shards.all_heads(tensor, HEADS) for tensor in s)) for s in stores]


def with_own_heads(stores: Iterable[Store], shards: Shards | None) -> list[Store]:
    """Stores of this process's heads, of `stores` of all heads."""
    if shards is None:
        return list(stores)
    return [with_tensors(type(s), (shards.own_heads(tensor, HEADS) for tensor in s)) for s in stores]
