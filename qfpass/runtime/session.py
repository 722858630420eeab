"""A session: a batch of texts' stores and where each stands, as a Hugging Face cache."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import Sizes
from ..errors import SessionError
from ..graph.rewrite import Site
from ..store.ring import Ring, held_positions
from . import saved
from .counts import Counts, State
from .exclusive import Exclusive
from .read_ids import ReadIds
from .rows import Row, Span
from .stores import Stores


class Owner(Protocol):
    """The compiled decoder that a session belongs to."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What a saved session must fit: names of things and what they are."""


class Session(Counts):
    """State of a batch of texts over a compiled decoder; made by `model.session()`.

    Pass it as `past_key_values` to the model or to `generate`. Nothing of it is shared with other
    sessions. Its bytes are allocated when the first tokens come (the batch size is known then) and
    never change. One thread uses it at a time; another one's call raises SessionError.
    """

    def __init__(
        self, sites: Sequence[Site], sizes: Sizes, dtype: torch.dtype, device: torch.device, owner: Owner
    ) -> None:
        super().__init__()
        self.sites, self.sizes, self.dtype, self.device = tuple(sites), sizes, dtype, device
        self._owner = owner
        self._exclusive = Exclusive()
        self.resting: frozenset[int] = frozenset()  # rows that generate has finished: they read nothing more
        self.columns_to_read: int | None = None  # of the ids that generate was given, until it has read them

    def belongs_to(self, owner: object) -> bool:
        """Whether `owner`, a compiled decoder, made this session."""
        return self._owner is owner

    @property
    def slots(self) -> int:
        """Slots a key/value head that this session uses in bounded layers, on average."""
        return self.sizes.slots

    def allocate(self, batch: int) -> None:
        """Make empty stores for `batch` rows; a session that has seen tokens keeps its batch."""
        if self.batch == batch:
            return
        self._state = State(self._empty_stores(batch), (Row(),) * batch)

    def _empty_stores(self, batch: int) -> Stores:
        stores = Stores.empty(self.sites, batch, self.dtype, self.device)
        self._clear(stores)
        return stores

    def _clear(self, stores: Stores) -> None:
        for _, rule, store in stores.stacks:
            slots = self.sizes.slots_of(rule.share) if rule.is_bounded else None
            rule.clear(store, slots)  # type: ignore[arg-type]

    def stores_of(self, row: int) -> Stores:
        """Views of one row's part of every store, [1, ...]."""
        return self.stores.map(lambda tensor: tensor[:, row : row + 1])

    def advance(self, rows: Iterable[int], tokens: int) -> None:
        """Count tokens read by some rows."""
        affected = set(rows)
        moved = (row.advanced(tokens) if i in affected else row for i, row in enumerate(self.rows))
        self._state = self._state._replace(rows=tuple(moved))

    def place(self, row: int, position: int) -> None:
        """Let a row's next token take another position."""
        rows = list(self.rows)
        rows[row] = rows[row]._replace(position=position)
        self._state = self._state._replace(rows=tuple(rows))

    def note_read(self, ids: torch.Tensor, spans: Sequence[Span]) -> None:
        """Count the columns of a call that has succeeded, and keep its ids [B, S]."""
        columns, read = self.columns + ids.shape[1], self.read.after(ids, spans)
        self._state = self._state._replace(columns=columns, read=read)

    def reset(self) -> None:
        """Forget everything seen, keep the memory."""
        with self.in_use(resetting=True):
            self._empty(State(self.stores, (Row(),) * len(self.rows)))
            self._exclusive.is_broken = False

    def _empty(self, state: State) -> None:
        self._clear(state.stores)
        self._state = state

    def fork(self) -> "Session":
        """A session that stands where this one does and shares nothing that changes."""
        with self.in_use():
            twin = Session(self.sites, self.sizes, self.dtype, self.device, self._owner)
            twin._state = self._state._replace(stores=self.copied_stores())
        return twin

    def copied_stores(self) -> Stores:
        """Stores of the same contents."""
        return self.stores.map(torch.clone)

    def in_use(self, resetting: bool = False) -> AbstractContextManager[None]:
        """Hold the session for this thread, or raise SessionError; see `Exclusive`."""
        return self._exclusive.hold(mends=resetting)

    def cancel(self) -> bool:
        """End the call or `generate` that another thread runs on this session, which raises CancelledError.

        It ends before the next chunk of its prompt or its next token, and what that call has read is put
        back. Returns whether there was one; it hasn't ended yet then.
        """
        return self._exclusive.cancel()

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError in a call that `cancel` ends."""
        self._exclusive.refuse_if_cancelled()

    @contextmanager
    def restoring(self, before: State) -> Iterator[None]:
        """Go back to `before` once the body has put the stores' contents back."""
        self._exclusive.is_broken = True
        yield
        if any(row.tokens for row in before.rows):
            self._state = before
        else:
            self._empty(before)
        self._exclusive.is_broken = False

    @property
    def state(self) -> State:
        """Where the session stands, for `restoring`."""
        return self._state

    def positions(self, layer: int) -> torch.Tensor:
        """Positions of the keys that attention `layer` (from 0) holds, [B, Hkv, slots] int32, -1: empty."""
        if not 0 <= layer < len(self.stores):
            raise SessionError(
                f"no positions of attention {layer}: the session has {len(self.stores)} stores so far "
                "(they are made when the first tokens come)."
            )
        store = self.stores[layer]
        if not isinstance(store, Ring):
            return store.positions
        return held_positions(store, torch.tensor([row.position for row in self.rows], device=self.device))

    def save(self, path: str | Path) -> None:
        """Write the session to a safetensors file, which `load` reads in another process."""
        with self.in_use():
            seen = self._state if self.tokens_seen else State()
            saved.write(path, seen.stores, seen.rows, seen.columns, seen.read.rows(), self._identity)

    def load(self, path: str | Path) -> "Session":
        """Stand where a saved session stood; what this one held is forgotten. Returns itself.

        Raises:
            SessionError: no session there, or one of another model, budget, score or dtype; nothing changed.
        """
        kinds = [site.rule.store_type for site in self.sites]
        with self.in_use(resetting=True):
            held, rows, columns, ids = saved.read(path, kinds, self._identity)
            stores = self._empty_stores(len(rows)) if rows else Stores()
            stores.copy_(held)
            self._state = State(stores, rows, columns, ReadIds(ids))
            self._exclusive.is_broken = False
        return self

    @property
    def _identity(self) -> dict[str, str]:
        return {**self._owner.identity, "budget": str(self.slots)}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was, as beam search asks."""
        with self.in_use():
            chosen = beam_idx.to(self.device)
            for store in self.stores:
                for tensor in store:
                    tensor.copy_(tensor.index_select(0, chosen))
            rows = beam_idx.tolist()
            self._state = self._state._replace(
                rows=tuple(self.rows[i] for i in rows), read=self.read.chosen(rows)
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row."""
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        with self.in_use():
            chosen = torch.arange(len(self.rows))[indices.cpu()]
            stores = self.stores.map(lambda tensor: tensor[:, chosen.to(tensor.device)])
            rows, read = tuple(self.rows[i] for i in chosen.tolist()), self.read.chosen(chosen.tolist())
            self._state = self._state._replace(stores=stores, rows=rows, read=read)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return self.fork()

    def __getstate__(self) -> object:
        raise SessionError("a session can't be pickled: save(path) it and load(path) it.")

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        return f"Session(tokens_seen={self.tokens_seen}, nbytes={self.nbytes})"
