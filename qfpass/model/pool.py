"""Pool: many conversations in one allocation, stepped together; made by `model.pool(rows)`."""

import operator
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch

from ..decoder.decoder import Decoder
from ..decoder.read import read
from ..decoder.row_sessions import RowSessions, naming
from ..errors import ConfigError, InputError, SessionError
from ..sessions.rows import TokenColumns
from ..sessions.session import Session
from ..waits import Wait
from .changes import DecoderVersions
from .check_inputs import as_one_row, check_inputs, check_length, check_session, wanted_indices


class Pool:
    """Rows for conversations, whose memory is allocated at once; each row is free or holds a conversation.

    A row gives the logits, and keeps the keys, of a session that reads the same by itself. Any thread may
    use any row, one thread a row at a time; a prompt lets other rows' calls in between its chunks. A call
    that fails or is cancelled changes nothing in any row.
    """

    def __init__(self, decoder: Decoder, rows: int, changes: DecoderVersions) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ConfigError(f"a pool's rows must be a whole number of at least 1, not {rows!r}.")
        possible = decoder.graphs.rows
        if possible is not None and rows not in possible:
            raise ConfigError(
                f"a pool of {rows} rows steps them together, but this decoder was exported for calls of "
                f"{' or '.join(map(str, possible))}: export it with rows={rows}."
            )
        self._decoder, self._changes = decoder, changes
        self._rows = RowSessions(decoder, rows)

    @property
    def rows(self) -> int:
        """The number of rows, free or in use."""
        return len(self._rows)

    @property
    def free(self) -> tuple[int, ...]:
        """The free rows, ascending."""
        return self._rows.free

    @property
    def nbytes(self) -> int:
        """Bytes of the stores of all rows; it never changes."""
        return sum(tensor.nbytes for store in self._rows.stores for tensor in store)

    def tokens_seen(self, row: int) -> int:
        """Tokens that the conversation in a row has read.

        Raises:
            SessionError: no conversation is in this row.
        """
        with naming(row):
            return self._rows.session(self._row(row)).tokens_seen

    def join(self, session: Session | None = None) -> int:
        """The row that holds a copy of a session of one row, or an empty conversation; it was free before.

        The session itself is left as it is. Its budget may be smaller than the compiled one.

        Raises:
            SessionError: no row is free; or the session has several rows, is in use by another thread, or
                belongs to another model.
        """
        decoder = self._current()
        session = decoder.session() if session is None else session
        check_session(decoder, session, self._changes)
        if session.tokens_seen and session.batch != 1:
            raise SessionError(
                f"the session holds {session.batch} rows, but a pool's row holds one: make one for each."
            )
        return self._rows.add(session)

    def leave(self, row: int) -> Session:
        """A session with a row's state, in memory of its own; the row is free afterwards.

        Raises:
            SessionError: no conversation is in this row, or another thread uses it.
        """
        with naming(row):
            return self._rows.take_out(self._row(row))

    def drop(self, row: int) -> None:
        """Free a row; its conversation is lost.

        Raises:
            SessionError: no conversation is in this row, or another thread uses it.
        """
        with naming(row):
            self._rows.remove(self._row(row))

    def fork(self, row: int) -> int:
        """Another row, free before, that holds a copy of a row's conversation.

        Raises:
            SessionError: no conversation is in this row, another thread uses it, or no row is free.
        """
        with naming(row), self._rows.held(self._row(row)) as session:
            return self._rows.add(session)

    def copy(self, row: int) -> Session:
        """A session with a row's state, in memory of its own; the conversation stays in its row.

        Raises:
            SessionError: no conversation is in this row, or another thread uses it.
        """
        with naming(row):
            return self._rows.copy(self._row(row))

    def crop(self, row: int, tokens: int) -> None:
        """Take the newest tokens of a row back, at most as many as its session's `take_back`.

        The row is then what reading the other tokens alone leaves. See `Session.crop`.

        Raises:
            InputError: `tokens` isn't a whole number from 0.
            SessionError: some can't be taken back, no conversation is in this row, or another thread uses it.
        """
        with naming(row):
            if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
                raise InputError(f"the tokens to take back must be a whole number from 0, not {tokens!r}.")
            self._rows.take_back(self._row(row), tokens)

    def cancel(self, row: int) -> bool:
        """Cancel the call that another thread runs on a row; True if there is one. See `Session.cancel`.

        Raises:
            SessionError: no conversation is in this row.
        """
        with naming(row):
            return self._rows.session(self._row(row)).cancel()

    def read(
        self, row: int, ids: torch.Tensor | Sequence[int], logits_to_keep: int | torch.Tensor = 1
    ) -> torch.Tensor:
        """Read token ids [S] or [1, S], of any length, into a row; logits [n, V].

        Args:
            logits_to_keep: 0 for every token's logits, n for the last n, or indices in any order.

        Raises:
            InputError: the ids aren't integers of the vocabulary, or go past the context length.
            SessionError: no conversation is in this row, or another thread uses it.
            CancelledError: `cancel` ended the call.
        """
        decoder = self._current()
        with naming(row), self._rows.held(self._row(row)) as session:
            tokens, spans = check_inputs(decoder, session, as_one_row(ids), None, None)
            return read(decoder, session, tokens, spans, wanted_indices(logits_to_keep, tokens.columns))[0]

    def step(self, tokens: Mapping[int, int | torch.Tensor]) -> torch.Tensor:
        """Read one token into each row that `tokens` names, in one call of the graph; logits [n, V].

        The logits are in the order of `tokens`. Rows that it doesn't name stay as they are.

        Raises:
            InputError: no row is named, or a token isn't of the vocabulary or goes past the context length.
            SessionError: a row is free, or another thread uses it.
            CancelledError: `cancel` ended the call.
        """
        decoder = self._current()
        if not tokens:
            raise InputError("the step names no row: give {row: token}.")
        checked = {self._row(row): self._token(row, token) for row, token in tokens.items()}
        if len(checked) == 1:
            ((row, token),) = checked.items()
            return self.read(row, [token])
        with ExitStack() as stack:
            reading = dict[int, Session]()
            for row in checked:
                with naming(row):
                    reading[row] = stack.enter_context(self._rows.held(row))
                    check_length(decoder, reading[row], [TokenColumns(0, 1)])
            return self._rows.step(checked, reading)

    def warm_up(self) -> None:
        """Compile what this pool's reads and steps need, so that none of them compiles anything later.

        It takes seconds to minutes, and says so. A decoder that `qfpass.load` made has nothing to compile.

        Raises:
            SessionError: fewer than two rows are free, or the only one isn't.
        """
        decoder = self._current()
        if decoder.graphs.rows is not None:  # packages, compiled ahead of time
            return
        if len(self.free) < min(2, self.rows):
            raise SessionError("warming up needs two free rows: do it before conversations join.")
        prompt = [0] * max(1, min(decoder.sizes.chunk + 1, decoder.sizes.context_length - 5))
        first = self.join()
        try:
            with Wait("compiling what prompts and steps need", "a minute or two, then seconds"):
                self.read(first, prompt)  # a chunk, a token
                for _ in range(2):  # on full stores the second token is read by graphs of its own
                    self.read(first, [0])
                if self.rows > 1:
                    self._warm_up_steps(first, prompt)
        finally:
            self.drop(first)

    def _warm_up_steps(self, first: int, prompt: list[int]) -> None:
        """Step two rows of different lengths, then of the same; `first` has read `prompt` and two tokens."""
        second = self.join()
        try:
            self.step({first: 0, second: 0})
            self.read(second, [0, 0, *prompt])
            for _ in range(2):
                self.step({first: 0, second: 0})
        finally:
            self.drop(second)

    def _current(self) -> Decoder:
        """The pool's decoder.

        Raises:
            SessionError: the model has changed since the pool was made.
        """
        if self._changes.current() is not self._decoder:
            raise SessionError(
                "the model has changed since this pool was made, so the pool's keys no longer fit it: make "
                "another pool, or change the model back."
            )
        return self._decoder

    def _row(self, row: int) -> int:
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < self.rows:
            raise SessionError(f"there is no row {row!r}: this pool has rows 0 to {self.rows - 1}.")
        return row

    def _token(self, row: int, token: int | torch.Tensor) -> int:
        try:
            number = operator.index(token)
        except TypeError as error:
            raise InputError(f"row {row}: a step reads one token id, not {token!r}.") from error
        most = self._decoder.vocabulary
        if number < 0 or (most is not None and number >= most):
            vocabulary = "ids from 0" if most is None else f"ids from 0 to {most - 1}"
            raise InputError(
                f"row {row}: there is no token {number}: the model's vocabulary has {vocabulary}."
            )
        return number
