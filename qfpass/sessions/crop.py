"""CroppableCache: what a session has read can be taken back: its newest tokens, a failed call, or all."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..errors import SessionError
from ..sizes import Sizes
from ..upstream.cache import columns_to_remove
from .hf_cache import SessionCache, State
from .journal import Journal
from .overwritten import Overwritten
from .rows import Row
from .single_user import SessionLock
from .stores import Stores
from .unread import Unread


class CroppableCache(SessionCache):
    """A SessionCache with a journal of what its newest calls overwrote, and a lock for its one user.

    Attributes:
        sizes: the session's sizes.
        take_back: how many of the newest columns of ids `crop` can take back.
        begins_anew: `crop` resets the session where it can't take so many back: a draft's text is read again.
        unread: how the ids of the generate that runs on the session lie to those read; else None.
    """

    sizes: Sizes

    def __init__(self, take_back: int) -> None:
        super().__init__()
        self.take_back, self.begins_anew = take_back, False
        self.unread: Unread | None = None
        self._exclusive = SessionLock()

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can take tokens back."""
        return self.take_back > 0

    def in_use(self, resetting: bool = False) -> AbstractContextManager[None]:
        """A context that holds the session for this thread, or raises SessionError; see `SessionLock.hold`.

        `resetting`: the use overwrites everything, so a broken session is allowed.
        """
        return self._exclusive.hold(allow_broken=resetting)

    def cancel(self) -> bool:
        """Cancel the call or `generate` that another thread runs on this session; True if there is one.

        That call raises CancelledError before its next chunk or token, and what it has read is undone. It
        may still be running when `cancel` returns.
        """
        return self._exclusive.cancel()

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError if `cancel` was called for the running call."""
        self._exclusive.refuse_if_cancelled()

    @contextmanager
    def restoring(self, before: State, turn: AbstractContextManager[None]) -> Iterator[None]:
        """A context whose body restores the stores' contents; on exit the session's state is `before`.

        The session is broken meanwhile, so that after an interrupt it refuses calls until `reset`. All of it
        happens inside `turn`.
        """
        self._exclusive.is_broken = True
        with turn:
            yield
            if any(row.tokens for row in before.rows):
                self._state = before
            else:
                self._empty(before)
        self._exclusive.is_broken = False

    @property
    def is_broken(self) -> bool:
        """Whether the undoing of a failed call was interrupted."""
        return self._exclusive.is_broken

    def reset(self) -> None:
        """Forget all tokens read, keep the stores' memory, and make a broken session usable again."""
        with self.in_use(resetting=True):
            self._empty(State(self.stores, (Row(),) * len(self.rows)))
            self._exclusive.is_broken = False

    def _empty(self, state: State) -> None:
        self._clear(state.stores)
        self._state = state

    def _clear(self, stores: Stores) -> None:
        for _, rule, store in stores.stacks:
            slots = self.sizes.slots_of(rule.share) if rule.is_bounded else None
            rule.clear(store, slots)  # type: ignore[arg-type]

    @property
    def journal(self) -> Journal:
        """What the newest calls overwrote."""
        return self._state.journal

    def note_overwritten(self, piece: Overwritten) -> None:
        """Keep what a piece is about to overwrite, so that its tokens can be taken back."""
        self._state = self._state._replace(journal=self.journal.with_piece(piece))

    @contextmanager
    def taking_back(self, tokens: int) -> Iterator[None]:
        """A context in which `take_back` is at least `tokens`."""
        before, self.take_back = self.take_back, max(self.take_back, tokens)
        try:
            yield
        finally:
            self.take_back = before
            journal = self.journal.shortened(before, len(self.rows))
            self._state = self._state._replace(journal=journal)

    def make_final(self, why: str) -> None:
        """Let no token that has been read be taken back; `why` follows "since" in an error."""
        self._state = self._state._replace(journal=Journal(ended_by=why))

    @torch.no_grad()
    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back: `crop(-n)` takes those of the last n columns, n at most `take_back`.

        The session is then what reading the other tokens alone leaves; no token is read for it. A number from
        0 means what it does in the transformers that is installed.

        Raises:
            SessionError: some of these tokens can't be taken back; the message says why. Nothing is changed.
        """
        with self.in_use():
            ahead = self.unread.ahead if self.unread else 0
            columns = columns_to_remove(tokens_to_remove, self.columns + ahead)
            if columns == 0:
                return
            rows = len(self.rows)
            tokens = self.journal.tokens_in_last(columns, rows)
            if tokens is None and self.begins_anew:
                return self.reset()
            if tokens is None:
                raise SessionError(self._why_not_taken_back(columns))
            before = self._state
            self._exclusive.is_broken = True  # until it is done: an interrupt leaves stores of both
            journal = self.journal.take_back(self.stores, columns, rows, self.sizes.recent)
            self._state = before._replace(
                rows=tuple(row.advanced(-n) for row, n in zip(before.rows, tokens, strict=True)),
                columns=before.columns - columns,
                read_ids=before.read_ids.without_last(tokens),
                journal=journal,
            )
            self._exclusive.is_broken = False

    def _why_not_taken_back(self, columns: int) -> str:
        if columns > self.columns:
            return f"{columns} tokens can't be taken back: the session has read {self.columns}."
        if not self.take_back:
            return (
                f"{columns} tokens can't be taken back, since the keys evicted for them are gone: make the "
                f"session with model.session(take_back={columns}), or fork() it before."
            )
        why = f"since {self.journal.ended_by}" if self.journal.ended_by else f"by take_back={self.take_back}"
        most = next(n for n in range(columns - 1, -1, -1) if self.journal.tokens_in_last(n, len(self.rows)))
        return (
            f"{columns} tokens can't be taken back, only the newest {most}, {why}: fork() the session "
            "before, or reset() it and read the text again."
        )
