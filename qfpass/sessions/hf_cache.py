"""What a session holds and counts, and its answers to the API of transformers' Cache."""

from typing import NamedTuple

from transformers import Cache

from ..store.store_kind import kv_nbytes
from .journal import Journal
from .read_ids import ReadIds
from .rows import Row
from .stores import Stores


class State(NamedTuple):
    """Everything that changes in a session, except the contents of its stores' tensors.

    Attributes:
        stores: one store per attention; empty before the first tokens.
        rows: each row's token count and next position.
        columns: columns of ids read so far, padding included, as transformers counts them.
        read_ids: the ids of the tokens read.
        journal: what the newest calls overwrote; empty if the session takes no tokens back.
    """

    stores: Stores = Stores()
    rows: tuple[Row, ...] = ()
    columns: int = 0
    read_ids: ReadIds = ReadIds()
    journal: Journal = Journal()


class SessionCache(Cache):
    """A transformers Cache that answers from its `State`; the subclass `Session` changes that."""

    is_compileable = False  # generate must not compile around the compiled decoder

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._state = State()

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far by the longest row, without padding."""
        return max(self.row_tokens, default=0)

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Tokens read so far by each row, without padding."""
        return tuple(row.tokens for row in self.rows)

    @property
    def batch(self) -> int | None:
        """The number of rows that the stores were allocated for; None before the first tokens."""
        return len(self.rows) or None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each row's token count and next position."""
        return self._state.rows

    @property
    def columns(self) -> int:
        """Columns of ids given so far, padding included: what transformers calls the sequence length."""
        return self._state.columns

    @property
    def read_ids(self) -> ReadIds:
        """The ids that each row has read."""
        return self._state.read_ids

    @property
    def stores(self) -> Stores:
        """One store per attention, in graph order."""
        return self._state.stores

    @property
    def nbytes(self) -> int:
        """Bytes of all stores: keys, values, scores and positions."""
        return sum(t.nbytes for store in self.stores for t in store)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of all keys and values, and of their scales if they are quantised."""
        return sum(map(kv_nbytes, self.stores))

    @property
    def batch_size(self) -> int:
        """The number of rows that the stores were allocated for; -1 before the first tokens."""
        return self.batch or -1

    @property
    def is_initialized(self) -> bool:
        """Whether the stores are allocated."""
        return bool(self.stores)

    @property
    def is_linear(self) -> list[bool]:
        """False per layer: transformers reads the whole text again if every layer of a cache is linear."""
        return [False] * max(1, len(self))

    @property
    def is_sliding(self) -> list[bool]:
        """False per layer: the stores themselves keep the keys of a sliding window."""
        return [False] * max(1, len(self))

    @property
    def is_dummy(self) -> list[bool]:
        """False per layer."""
        return [False] * max(1, len(self))

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The same as `get_max_length`, under its name in older versions of transformers."""
        return self.get_max_length(layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1, no limit: the decoder checks how many tokens a session may see."""
        return -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns given so far, not slots filled: transformers drops that many ids as already read."""
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """The number of columns that a mask over everything seen covers, and its offset 0."""
        return self.columns + query_length, 0
