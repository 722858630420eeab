"""Session: the stores of a batch of texts and how far each row is, as a Hugging Face cache."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import SessionError
from ..graph.part import Part
from ..sizes import Sizes
from ..store.layer import Layer
from ..store.ring import Ring, held_positions
from . import split_files
from .crop import CroppableCache
from .hf_cache import State
from .journal import Journal
from .pin import pin
from .read_ids import ReadIds
from .rows import Row, TokenColumns
from .stores import Stores


class Owner(Protocol):
    """The compiled decoder that a session belongs to."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What a saved session must have in common with the decoder to be loaded, by name."""


class Session(CroppableCache):
    """The state of a batch of texts on a compiled decoder; made by `model.session()`.

    Pass it as `past_key_values` to the model or to `generate`. Sessions share no state. Its memory is
    allocated when the first tokens come (the batch size is known then) and its size never changes. One
    thread uses it at a time; meanwhile a call from another thread raises SessionError.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        sizes: Sizes,
        dtype: torch.dtype,
        device: torch.device,
        owner: Owner,
        take_back: int = 0,
        part: Part | None = None,
    ) -> None:
        super().__init__(take_back)
        self._part = part
        self._layers, self.sizes, self.dtype, self.device = tuple(layers), sizes, dtype, device
        self._owner = owner
        self.resting: frozenset[int] = frozenset()  # rows that generate has finished; they read no tokens
        self.given_ids: torch.Tensor | None = None  # [B, S] of a call that reads their embeddings

    def belongs_to(self, owner: object) -> bool:
        """Whether `owner`, a compiled decoder, made this session."""
        return self._owner is owner

    @property
    def slots(self) -> int:
        """Slots per key/value head that this session uses, on average over bounded layers."""
        return self.sizes.slots

    def allocate(self, batch: int) -> None:
        """Make empty stores for `batch` rows, unless there are stores for that many already.

        The caller has checked that a session with tokens keeps its number of rows.
        """
        if self.batch == batch:
            return
        self._state = State(self._empty_stores(batch), (Row(),) * batch)

    def _empty_stores(self, batch: int) -> Stores:
        stores = Stores.empty(self._layers, batch, self.dtype, self.device)
        self._clear(stores)
        return stores

    def stores_of(self, row: int) -> Stores:
        """Views [1, Hkv, C, ...] of one row of every store."""
        return self.stores.row(row)

    @property
    def row_sizes(self) -> list[Sizes]:
        """The sizes of each row: the session's."""
        return [self.sizes] * len(self.rows)

    def advance(self, rows: Iterable[int], tokens: int) -> None:
        """Count `tokens` more tokens as read by each of `rows`."""
        affected = set(rows)
        moved = (row.advanced(tokens) if i in affected else row for i, row in enumerate(self.rows))
        self._state = self._state._replace(rows=tuple(moved))

    def set_position(self, row: int, position: int) -> None:
        """Set the position of a row's next token."""
        rows = list(self.rows)
        rows[row] = rows[row]._replace(position=position)
        self._state = self._state._replace(rows=tuple(rows))

    def set_next_on_axes(self, row: int, position: int) -> None:
        """Set the position, on all of several axes, of a row's next token."""
        rows = list(self.rows)
        rows[row] = rows[row]._replace(axes_ahead=position - rows[row].position)
        self._state = self._state._replace(rows=tuple(rows))
        self.make_final("images were read, which moved the positions of what follows")

    def note_read(self, ids: torch.Tensor, spans: Sequence[TokenColumns]) -> None:
        """Count the columns of a successful call, and keep its ids [B, S]; `spans`: each row's columns."""
        columns, read = self.columns + ids.shape[1], self.read_ids.after(ids, spans)
        journal = self.journal.after_call(ids.shape[1], spans, self.take_back)
        self._state = self._state._replace(columns=columns, read_ids=read, journal=journal)

    def fork(self) -> "Session":
        """A copy of this session; reading into either doesn't change the other."""
        with self.in_use():
            return self._twin(self._state._replace(stores=self.copied_stores()))

    def fork_into(self, stores: Stores) -> "Session":
        """A copy of this session, of one row, whose tokens lie in `stores` [1, ...]; they are overwritten."""
        with self.in_use():
            if self.tokens_seen:
                stores.copy_(self.stores)
                return self._twin(self._state._replace(stores=stores))
            self._clear(stores)
            return self._twin(State(stores, (Row(),)))

    def _twin(self, state: State) -> "Session":
        twin = Session(
            self._layers, self.sizes, self.dtype, self.device, self._owner, self.take_back, self._part
        )
        twin._state = state
        return twin

    def copied_stores(self) -> Stores:
        """A copy of all stores."""
        return self.stores.map(torch.clone)

    @property
    def state(self) -> State:
        """The session's current state, for `restoring`."""
        return self._state

    def positions(self, layer: int) -> torch.Tensor:
        """Positions [B, Hkv, slots] int32 of the keys that attention `layer` (from 0) holds; -1: empty slot.

        Raises:
            SessionError: there is no such attention in this process, or no tokens have been read yet.
        """
        held = dict(zip([each.index for each in self._layers], self.stores, strict=False))
        if layer not in held:
            raise SessionError(
                f"no positions of attention {layer}: the session has {len(held)} stores here so far "
                "(they are made when the first tokens come)."
            )
        store = held[layer]
        if not isinstance(store, Ring):
            return store.positions
        ends = torch.tensor([row.position for row in self.rows], device=store.keys.device)
        return held_positions(store, ends)

    def pin(self, start: int, stop: int, row: int | None = None) -> None:
        """Never evict the tokens at positions `start` to `stop` - 1 of a row (of all rows by default).

        For a system prompt: read it in a call of its own, then pin it. Saved and forked with the session.

        Raises:
            SessionError: they haven't been read, are no longer all held, or leave no room for others.
        """
        with self.in_use():
            ranks = split_files.ranks_of(self._part)
            pin(self.stores, self.sizes, self.row_tokens, start, stop, row, ranks)
            self.make_final("tokens were pinned")

    def save(self, path: str | Path) -> None:
        """Write the session to a safetensors file, which `load` can read in another process.

        Where a model is split over processes, all of them call it, and one file has all layers and heads: any
        other number of processes can load it.

        Raises:
            SessionError: the file can't be written.
        """
        with self.in_use():
            seen = self._state if self.tokens_seen else State()
            split_files.write(path, seen, self._layers, self._identity, self._part)

    def load(self, path: str | Path) -> "Session":
        """This session, after its contents have been replaced by those of a saved session.

        Raises:
            SessionError: no session there, or one of another model, budget, score or dtype; nothing changed.
        """
        with self.in_use(resetting=True):
            held, rows, columns, ids = split_files.read(path, self._layers, self._identity, self._part)
            stores = self._empty_stores(len(rows)) if rows else Stores()
            stores.copy_(held)
            self._state = State(stores, rows, columns, ReadIds(ids), Journal(ended_by="it was loaded"))
            self._exclusive.is_broken = False
        return self

    @property
    def _identity(self) -> dict[str, str]:
        return {**self._owner.identity, "budget": str(self.slots)}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace each row i by row `beam_idx[i]`, in place; beam search calls this."""
        with self.in_use():
            for store in self.stores:
                for tensor in store:
                    tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))
            rows = beam_idx.tolist()
            self._state = self._state._replace(
                rows=tuple(self.rows[i] for i in rows),
                read_ids=self.read_ids.chosen(rows),
                journal=self.journal.reordered(rows),
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Replace each row by `repeats` copies of itself, one after the other."""
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Replace the batch by the rows `indices`, in this order."""
        with self.in_use():
            chosen = torch.arange(len(self.rows))[indices.cpu()]
            stores = self.stores.map(lambda tensor: tensor[:, chosen.to(tensor.device)])
            numbers = chosen.tolist()
            self._state = State(
                stores,
                tuple(self.rows[i] for i in numbers),
                self.columns,
                self.read_ids.chosen(numbers),
                self.journal.reordered(numbers),
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return self.fork()

    def __getstate__(self) -> object:
        raise SessionError("a session can't be pickled: save(path) it and load(path) it.")

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Session(tokens_seen={self.tokens_seen}, nbytes={self.nbytes})"
