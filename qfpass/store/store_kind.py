"""StoreKind: what a slot holds of a token's key and value, and how both are read from it again."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, TypeVar

import torch

from .kv_form import KVForm


class StoreKind(Protocol):
    """A NamedTuple class whose fields are the tensors [B, Hkv, C] or [B, Hkv, C, n] of one layer's store.

    The last two are `scores` float32 and `positions` int32; the fields before them are the kind's own. Give a
    class of yours to `qfpass.compile(model, store=MySlots)`. What is stored for a token may depend on this
    token alone, since tokens enter and leave a head's store one by one. An empty slot holds zeros. `dense`
    must turn them into finite numbers, which attention then reads with a weight of 0.
    """

    @property
    def scores(self) -> torch.Tensor:
        """Each slot's score, [B, Hkv, C] float32; `of` is given them and keeps them as they are."""

    @property
    def positions(self) -> torch.Tensor:
        """The position of each slot's token, [B, Hkv, C] int32; -1 where the slot is empty."""

    @classmethod
    def of(
        cls, keys: torch.Tensor, values: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor
    ) -> Self:
        """Slots that hold keys [B, Hkv, S, D] and values [B, Hkv, S, Dv] in the model's dtype."""

    def dense(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [B, Hkv, C, D] and values [B, Hkv, C, Dv] in `dtype`, as an attention kernel reads them."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The tensors, as of every NamedTuple."""

    def __len__(self) -> int:
        """Their number."""

    def __getitem__(self, index: Any, /) -> Any:
        """One of them, or several."""


Store = TypeVar("Store")
_BESIDE = ("scores", "positions")


def fields_of(kind: type[Any]) -> tuple[str, ...]:
    """The names of a store's tensors."""
    fields: tuple[str, ...] = kind._fields
    return fields


def with_tensors(kind: type[Store], tensors: Iterable[torch.Tensor]) -> Store:
    """The store of these tensors, in the order of its fields."""
    return kind(*tensors)


def empty_store(kind: type[StoreKind], rows: int, slots: int, form: KVForm) -> StoreKind:
    """Empty slots [rows, Hkv, slots]: zeros, scores of -inf and positions of -1."""
    store = with_tensors(
        kind,
        (
            torch.zeros(rows, form.kv_heads, slots, *held.shape[3:], dtype=held.dtype, device=form.device)
            for held in _one_token(kind, form)
        ),
    )
    store.scores.fill_(float("-inf"))
    store.positions.fill_(-1)
    return store


def first_slots(store: StoreKind, count: int) -> StoreKind:
    """Views of the first `count` slots."""
    return with_tensors(type(store), (tensor.narrow(2, 0, count) for tensor in store))


def kv_nbytes(store: Iterable[torch.Tensor]) -> int:
    """Bytes of all that a store, also a ring, holds of keys and values."""
    named = zip(fields_of(type(store)), store, strict=True)
    return sum(tensor.nbytes for name, tensor in named if name not in _BESIDE)


def token_nbytes(kind: type[StoreKind], form: KVForm) -> int:
    """Bytes of what a layer's slots hold of one token's keys and values, in all heads."""
    return kv_nbytes(_one_token(kind, form))


def _one_token(kind: type[StoreKind], form: KVForm) -> StoreKind:
    key, value = (
        torch.zeros(1, form.kv_heads, 1, dim, dtype=form.dtype, device=form.device)
        for dim in (form.head_dim, form.value_dim)
    )
    scores, positions = (
        torch.zeros(1, form.kv_heads, 1, dtype=own, device=form.device)
        for own in (torch.float32, torch.int32)
    )
    return kind.of(key, value, scores, positions)
