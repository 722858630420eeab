"""A session: one text's stores and where it stands, as a Hugging Face cache."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import Cache

from ..errors import SessionError
from ..graph.rewrite import Site
from ..store.ring import Ring, held_positions
from ..store.slots import Slots
from . import saved


class Owner(Protocol):
    """The compiled decoder that a session belongs to."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What a saved session must fit: names of things and what they are."""


class Session(Cache):
    """State of one text over a compiled decoder; made by `model.session()`.

    Pass it as `past_key_values` to the model or to `generate`. Nothing of it is shared with other
    sessions. Its bytes are allocated when the first tokens come (the batch size is known then) and
    never change.
    """

    is_compileable = False  # generate must not compile around the compiled decoder
    is_croppable = False  # what was evicted for a token can't come back when the token is taken back

    def __init__(self, sites: Sequence[Site], dtype: torch.dtype, device: torch.device, owner: Owner) -> None:
        super().__init__(layers=[])
        self._sites, self._dtype, self._device = tuple(sites), dtype, device
        self._owner = owner
        self._stores: tuple[Slots | Ring, ...] = ()
        self.tokens_seen = 0

    def belongs_to(self, owner: object) -> bool:
        """Whether `owner`, a compiled decoder, made this session."""
        return self._owner is owner

    @property
    def batch(self) -> int | None:
        """Rows that the session was allocated for; None before its first tokens."""
        return self._stores[0].keys.shape[0] if self._stores else None

    @property
    def stores(self) -> tuple[Slots | Ring, ...]:
        """One store a site, in graph order."""
        return self._stores

    @property
    def nbytes(self) -> int:
        """Bytes held by all stores: keys, values, scores and positions."""
        return sum(t.nbytes for store in self._stores for t in store)

    @property
    def kv_nbytes(self) -> int:
        """Bytes held by keys and values alone."""
        return sum(store.keys.nbytes + store.values.nbytes for store in self._stores)

    def allocate(self, batch: int) -> None:
        """Make empty stores for `batch` rows; a session that has seen tokens keeps its batch."""
        if self.batch == batch:
            return
        self._stores = tuple(
            site.rule.allocate(
                batch,
                site.attention.kv_heads,
                site.attention.head_dim,
                site.attention.value_dim,
                self._dtype,
                self._device,
            )
            for site in self._sites
        )

    def reset(self) -> None:
        """Forget everything seen, keep the memory."""
        for site, store in zip(self._sites, self._stores, strict=False):
            site.rule.clear(store)  # type: ignore[arg-type]
        self.tokens_seen = 0

    def fork(self) -> "Session":
        """A session that stands where this one does and shares nothing that changes."""
        twin = Session(self._sites, self._dtype, self._device, self._owner)
        twin._stores = self._map(torch.clone)
        twin.tokens_seen = self.tokens_seen
        return twin

    def positions(self, layer: int) -> torch.Tensor:
        """Positions of the keys that attention `layer` (from 0) holds, [B, Hkv, slots] int32, -1: empty."""
        if not self._stores or not 0 <= layer < len(self._stores):
            raise SessionError(
                f"no positions of attention {layer}: the session has {len(self._stores)} stores so far "
                "(they are made when the first tokens come)."
            )
        store = self._stores[layer]
        return store.positions if isinstance(store, Slots) else held_positions(store, self.tokens_seen)

    def save(self, path: str | Path) -> None:
        """Write the session to a safetensors file, which `load` reads in another process."""
        saved.write(path, self._stores if self.tokens_seen else (), self.tokens_seen, self._owner.identity)

    def load(self, path: str | Path) -> "Session":
        """Stand where a saved session stood; what this one held is forgotten. Returns itself.

        Raises:
            SessionError: no session there, or one of another model, budget, score or dtype; nothing changed.
        """
        kinds = [Ring if site.is_ring else Slots for site in self._sites]
        self._stores, self.tokens_seen = saved.read(path, kinds, self._owner.identity, self._device)
        return self

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was, as beam search asks."""
        for store in self._stores:
            for tensor in store:
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row."""
        self._stores = self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self._stores = self._map(lambda tensor: tensor[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused but for 0: evicted keys can't be brought back."""
        if tokens_to_remove:
            raise SessionError(
                "a session can't take tokens back, since the keys evicted for them are gone: generate "
                "without assisted or prompt-lookup decoding, or fork() the session before."
            )

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Slots | Ring, ...]:
        return tuple(type(store)(*map(change, store)) for store in self._stores)

    @property
    def batch_size(self) -> int:
        """Rows that the session was allocated for; -1 before its first tokens."""
        return self.batch or -1

    @property
    def is_initialized(self) -> bool:
        """Whether the stores are allocated."""
        return bool(self._stores)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: how many tokens may be seen is the decoder's affair, not the stores'."""
        return -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, not slots filled: positions go on from here."""
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """The keys a mask over everything seen would cover, and its offset."""
        return self.tokens_seen + query_length, 0

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"Session(tokens_seen={self.tokens_seen}, nbytes={self.nbytes})"
