"""What a session holds and counts, and the answers to what transformers asks of a cache."""

from typing import NamedTuple

from transformers import Cache

from ..errors import SessionError
from .read_ids import ReadIds
from .rows import Row
from .stores import Stores


class State(NamedTuple):
    """All that changes in a session but the contents of its stores.

    `columns` counts what a call of transformers would, padding and tokens; `rows` count tokens; `read` has
    the tokens' ids.
    """

    stores: Stores = Stores()
    rows: tuple[Row, ...] = ()
    columns: int = 0
    read: ReadIds = ReadIds()


class Counts(Cache):
    """A cache that stands where its `State` says; `Session` changes it."""

    is_compileable = False  # generate must not compile around the compiled decoder
    is_croppable = False  # what was evicted for a token can't come back when the token is taken back

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._state = State()

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far, by the longest row; padding isn't counted."""
        return max(self.row_tokens, default=0)

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Tokens read so far by each row."""
        return tuple(row.tokens for row in self.rows)

    @property
    def batch(self) -> int | None:
        """Rows that the session was allocated for; None before its first tokens."""
        return len(self.rows) or None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Where each row stands."""
        return self._state.rows

    @property
    def columns(self) -> int:
        """Columns of ids given so far, padding among them: what transformers calls the sequence length."""
        return self._state.columns

    @property
    def read(self) -> ReadIds:
        """The ids that each row has read."""
        return self._state.read

    @property
    def stores(self) -> Stores:
        """One store a site, in graph order."""
        return self._state.stores

    @property
    def nbytes(self) -> int:
        """Bytes held by all stores: keys, values, scores and positions."""
        return sum(t.nbytes for store in self.stores for t in store)

    @property
    def kv_nbytes(self) -> int:
        """Bytes held by keys and values, with their scales if they are quantised."""
        return sum(store.kv_nbytes for store in self.stores)

    @property
    def batch_size(self) -> int:
        """Rows that the session was allocated for; -1 before its first tokens."""
        return self.batch or -1

    @property
    def is_initialized(self) -> bool:
        """Whether the stores are allocated."""
        return bool(self.stores)

    @property
    def is_linear(self) -> list[bool]:
        """No layer: transformers reads the whole text anew over a cache all of whose layers are linear."""
        return [False] * max(1, len(self))

    @property
    def is_sliding(self) -> list[bool]:
        """No layer: which keys a window holds is the store's affair."""
        return [False] * max(1, len(self))

    @property
    def is_dummy(self) -> list[bool]:
        """No layer."""
        return [False] * max(1, len(self))

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """What older versions of transformers call `get_max_length`."""
        return self.get_max_length(layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: how many tokens may be seen is the decoder's affair, not the stores'."""
        return -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns given so far, not slots filled: where transformers cuts off what was read."""
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """The keys a mask over everything seen would cover, and its offset."""
        return self.columns + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused but for 0: evicted keys can't be brought back."""
        if tokens_to_remove:
            raise SessionError(
                "a session can't take tokens back, since the keys evicted for them are gone: generate "
                "without assisted or prompt-lookup decoding, or fork() the session before."
            )
