"""The decoders that are compared, which continue after any number of tokens with randomly filled caches.

The earlier tokens aren't read. A cache has its real shapes and random keys, which cost the same, so a context
may be longer than the model was trained on.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from transformers import Cache, DynamicCache, StaticCache

from ...model.compiled_decoder import CompiledDecoder
from ...reporting import report
from ...sessions.rows import TokenColumns
from ...store.ring import Ring
from ...store.store_kind import StoreKind, first_slots
from ...upstream.cache import cache_kwargs


class Context(Protocol):
    """A decoder with a cache that holds some tokens."""

    @property
    def nbytes(self) -> int:
        """Bytes of the cache that a step reads."""

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read ids [B, S] next; returns the logits [B, 1, V] of the last token."""

    def twin(self) -> "Context":
        """A copy in the same state, which goes on independently."""


class Contender(Protocol):
    """A way to run the model."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def slots(self) -> int | None:
        """Keys kept a head; None if every key is."""

    @property
    def unread(self) -> int:
        """Bytes of weights that a step saves by reading packed copies."""

    def after(self, tokens: int, batch: int, room: int = 0) -> Context:
        """A context that holds `tokens` tokens of `batch` rows, with room for `room` more."""


class FullCache:
    """A Hugging Face model over a cache that keeps every key, eager or compiled."""

    slots, unread = None, 0

    def __init__(self, model: Any, name: str, forward: Callable[..., Any], is_static: bool = False) -> None:
        self.name = name
        self._model, self._forward, self._is_static = model, forward, is_static

    def after(self, tokens: int, batch: int, room: int = 0) -> Context:
        """See `Contender`."""
        config = self._model.config
        cache: Cache
        if self._is_static:
            cache = StaticCache(config=config, max_cache_len=tokens + room)
        else:
            cache = DynamicCache(config=config)
        if tokens:
            _fill(self._model, cache, tokens, batch)
        return FullContext(self._forward, cache)


@torch.no_grad()
def _fill(model: Any, cache: Cache, tokens: int, batch: int) -> None:
    """One token is read, which makes the cache's layers; the rest is random."""
    model(input_ids=torch.zeros(batch, 1, dtype=torch.long, device=model.device), **cache_kwargs(cache))
    layers: list[Any] = list(cache.layers)
    for layer in layers if tokens > 1 else []:
        keys, values = (
            torch.randn(batch, t.shape[1], tokens - 1, t.shape[3], dtype=t.dtype, device=t.device)
            for t in (layer.keys, layer.values)
        )
        layer.update(keys, values)


class FullContext:
    """The `Context` of a `FullCache`."""

    def __init__(self, forward: Callable[..., Any], cache: Cache) -> None:
        self._forward, self.cache = forward, cache

    @property
    def nbytes(self) -> int:
        """See `Context`."""
        held: list[Any] = list(self.cache.layers)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in held)

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Context`."""
        return self._forward(input_ids=ids, logits_to_keep=1, **cache_kwargs(self.cache)).logits

    def twin(self) -> Context:
        """See `Context`; a dynamic cache only, which never writes to the tensors that it holds."""
        twin = copy.copy(self.cache)
        twin.layers = [copy.copy(layer) for layer in self.cache.layers]
        return FullContext(self._forward, twin)


class BoundedContender:
    """A compiled decoder; each context is a session."""

    def __init__(self, model: CompiledDecoder, name: str) -> None:
        sizes = model.qfpass_decoder.sizes
        self.slots = sizes.slots if sizes.slots < sizes.context_length else None
        self.name, self._model = name, model
        told = report(model)
        self.unread = told.copied_nbytes - told.packed_nbytes

    def after(self, tokens: int, batch: int, room: int = 0) -> Context:
        """See `Contender`; the newest tokens are held."""
        session = self._model.session()
        if tokens:
            session.allocate(batch)
            for store in session.stores:
                _fill_store(store, tokens)
            session.advance(range(batch), tokens)
            session.note_read(
                torch.zeros(batch, tokens, dtype=torch.int32), [TokenColumns(0, tokens)] * batch
            )
        return BoundedContext(self._model, session)


def _fill_store(store: StoreKind | Ring, tokens: int) -> None:
    one = (
        (store.keys, store.values) if isinstance(store, Ring) else first_slots(store, 1).dense(torch.float32)
    )
    batch, heads, slots = next(iter(store)).shape[:3]
    held, device = min(tokens, slots), one[0].device
    keys, values = (torch.randn(batch, heads, held, each.shape[3], device=device) for each in one)
    fresh: Iterable[torch.Tensor] = (keys, values)
    if not isinstance(store, Ring):
        positions = torch.arange(tokens - held, tokens, device=device).expand(batch, heads, -1)
        fresh = type(store).of(keys, values, torch.randn(batch, heads, held, device=device), positions)
    for tensor, new in zip(store, fresh, strict=True):
        tensor[:, :, :held] = new


class BoundedContext:
    """The `Context` of a `BoundedContender`."""

    def __init__(self, model: CompiledDecoder, session: Any) -> None:
        self._model, self.session = model, session

    @property
    def nbytes(self) -> int:
        """The bytes of the filled slots; see `Context`."""
        shares = (min(1.0, self.session.tokens_seen / s.keys.shape[2]) for s in self.session.stores)
        sizes = (sum(t.nbytes for t in store) for store in self.session.stores)
        return round(sum(share * size for share, size in zip(shares, sizes, strict=True)))

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Context`."""
        out = self._model(input_ids=ids, past_key_values=self.session, logits_to_keep=1)
        return getattr(out, "logits", out)

    def twin(self) -> Context:
        """See `Context`."""
        return BoundedContext(self._model, self.session.fork())
