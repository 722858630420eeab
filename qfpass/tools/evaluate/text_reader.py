"""One interface to read a text with any model: ids in, logits out, and the footprint of what is kept."""

from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ...errors import InputError
from ...model.compiled_decoder import CompiledDecoder, decoder_of
from ...upstream.cache import cache_kwargs
from .footprint import Footprint

PIECE = 512  # tokens at a time where the cut makes no difference


class TextReader(Protocol):
    """A text that a model reads piece by piece."""

    @property
    def slots(self) -> int | None:
        """Keys kept a head; None if every key is."""

    @property
    def streams(self) -> bool:
        """Whether it holds at most `slots` keys a head however long the text grows."""

    @property
    def footprint(self) -> Footprint:
        """The slots and bytes held now."""

    def prefill(self, ids: torch.Tensor) -> None:
        """Read ids [B, S] next; nothing is predicted from them."""

    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """Read ids [B, S] next; logits [B, keep, V] of the last `keep` tokens, of all if 0."""


class Readable(Protocol):
    """An object that makes its own readers, such as `qfpass.tools.evaluate.Bounded`."""

    def reader(self, tokens: int) -> TextReader:
        """A reader for a prompt of `tokens` tokens."""


Model = nn.Module | Readable


def open_reader(model: Model, tokens: int) -> TextReader:
    """A reader that has read nothing, for a prompt of `tokens` tokens.

    Args:
        model: what `qfpass.compile` returned, a Hugging Face model (which keeps every key, in a
            DynamicCache), or anything with a `reader` method.

    Raises:
        InputError: another kind of model.
    """
    if isinstance(model, CompiledDecoder):
        return SessionReader(model)
    if isinstance(model, PreTrainedModel):
        return CacheReader(model)
    if not isinstance(model, nn.Module):
        return model.reader(tokens)
    raise InputError(
        f"{type(model).__name__} is neither compiled nor a Hugging Face model, so it has no cache to read "
        "with: pass qfpass.compile(model, ratio=1)."
    )


class SessionReader:
    """Reads a text with a compiled model, in a new session."""

    streams = True

    def __init__(self, model: CompiledDecoder) -> None:
        self._model, self._session = model, model.session()
        is_bounded = any(layer.rule.is_bounded for layer in decoder_of(model).layers)
        self.slots = self._session.slots if is_bounded else None

    @property
    def footprint(self) -> Footprint:
        """The slots a head, and the session's bytes of keys and values per row."""
        return Footprint(self.slots, self._session.kv_nbytes // (self._session.batch or 1))

    def prefill(self, ids: torch.Tensor) -> None:
        """See `TextReader`."""
        self.read(ids, keep=1)

    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """See `TextReader`."""
        out = self._model(ids, past_key_values=self._session, logits_to_keep=keep)
        return getattr(out, "logits", out)


class CacheReader:
    """Reads a text with a Hugging Face model and a DynamicCache: the uncompressed row."""

    slots, streams = None, True

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._cache = DynamicCache(config=model.config)

    @property
    def footprint(self) -> Footprint:
        """The cache's bytes of keys and values per row; every key is kept."""
        return Footprint(None, cache_nbytes(self._cache))

    def prefill(self, ids: torch.Tensor) -> None:
        """See `TextReader`; in pieces, which bounds the memory of activations and masks."""
        for piece in ids.split(PIECE, dim=1):
            self.read(piece, keep=1)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """See `TextReader`."""
        ids = ids.to(self._model.device)
        return self._model(
            input_ids=ids, use_cache=True, logits_to_keep=keep, **cache_kwargs(self._cache)
        ).logits


def cache_nbytes(cache: DynamicCache) -> int:
    """Bytes of keys and values of one row."""
    held: list[Any] = list(cache.layers)
    pairs = [(layer.keys, layer.values) for layer in held if layer.is_initialized]
    return sum((keys.nbytes + values.nbytes) // keys.shape[0] for keys, values in pairs)
