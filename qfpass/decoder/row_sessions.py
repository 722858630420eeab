"""RowSessions: many texts in one allocation, a session for each row, and steps of several rows in one call.

The stores of a row's session are views of that row, so it reads prompts, forks and undoes as any session. A
step of several rows is one call of the graph on all rows; what it wrote into the others is restored.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from ..errors import InputError, SessionError
from ..sessions.overwritten import Overwritten
from ..sessions.rows import Row, TokenColumns
from ..sessions.session import Session
from ..sessions.stores import Stores
from ..sessions.tokens import Tokens
from ..sizes import Sizes
from .decoder import Decoder
from .overflow import move_keys_back, overflows

Reading = Mapping[int, Session]
"""The sessions of the rows that read a token, by row."""
_FREE = "no conversation is in this row: join one first."


@contextmanager
def naming(row: int) -> Iterator[None]:
    """A context whose errors name a row of a pool."""
    try:
        yield
    except (InputError, SessionError) as error:
        raise type(error)(f"row {row}: {error}") from error


class RowSessions:
    """Stores of `rows` rows, allocated at once, each free or held by a session.

    Attributes:
        stores: the stores of all rows.
    """

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self._decoder = decoder
        self.stores = Stores.empty(decoder.layers, rows, decoder.dtype, decoder.device)
        for _, rule, store in self.stores.stacks:
            rule.clear(store)  # type: ignore[arg-type]  # the system gives the memory now, not when it is used
        # Kept, since recorded steps belong to the stores that they were recorded on.
        self._row_stores = [self.stores.row(row) for row in range(rows)]
        self._sessions: list[Session | None] = [None] * rows

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def free(self) -> tuple[int, ...]:
        """The rows that no session holds, ascending."""
        return tuple(row for row, session in enumerate(self._sessions) if session is None)

    def add(self, session: Session) -> int:
        """The row, free before, that holds a copy of `session` from now on.

        Raises:
            SessionError: no row is free.
        """
        with self._decoder.running():  # no step runs meanwhile, which would write into the row
            row = next(iter(self.free), None)
            if row is None:
                raise SessionError(f"all {len(self)} rows are in use: leave or drop one first.")
            self._sessions[row] = session.fork_into(self._row_stores[row])
        return row

    def session(self, row: int) -> Session:
        """The session that holds a row.

        Raises:
            SessionError: there is none.
        """
        session = self._sessions[row]
        if session is None:
            raise SessionError(_FREE)
        return session

    @contextmanager
    def held(self, row: int, resetting: bool = False) -> Iterator[Session]:
        """A context that holds a row for this thread; it gives the row's session.

        Raises:
            SessionError: no session holds the row, or another thread uses it.
        """
        session = self.session(row)
        with session.in_use(resetting):
            if self._sessions[row] is not session:  # it has just left
                raise SessionError(_FREE)
            yield session

    def remove(self, row: int) -> None:
        """Free a row; also one whose session is broken."""
        with self.held(row, resetting=True):
            self._sessions[row] = None

    def take_out(self, row: int) -> Session:
        """A session of its own memory with the row's state; the row is free afterwards."""
        with self.held(row):
            copy = self.copy(row)
            self._sessions[row] = None
        return copy

    def copy(self, row: int) -> Session:
        """A session of its own memory with the row's state."""
        with self.held(row) as session, self._decoder.running():  # a step writes into other rows too
            return session.fork()

    def take_back(self, row: int, tokens: int) -> None:
        """Take a row's newest tokens back; see `Session.crop`."""
        with self.held(row) as session, self._decoder.running():  # a step writes into other rows too
            if tokens:
                session.crop(-tokens)

    def _one_by_one(self, ids: torch.Tensor, reading: Reading) -> torch.Tensor:
        """Logits [n, V], each row's in a call of its own: the longest text in a call would change others."""
        calls = [
            self._decoder.step(Tokens(ids[row : row + 1]), s.stores, s.rows, s.row_sizes, [0], None)
            for row, s in reading.items()
        ]
        return torch.cat(calls)[:, 0]

    def _together(
        self,
        ids: torch.Tensor,
        rows: Sequence[Row],
        sizes: Sequence[Sizes],
        reading: Reading,
        standing: Sequence[int],
        overwritten: Overwritten,
    ) -> torch.Tensor:
        """Logits [n, V], in one call of the graph; in one for each budget if filters depend on budgets."""
        groups, calls, written = self._groups(reading), dict[int, torch.Tensor](), list[Overwritten]()
        for group in groups:
            logits = self._decoder.step(Tokens(ids), self.stores, rows, sizes, group, overwritten)[:, 0]
            if len(groups) == 1:
                overwritten.restore(self.stores, [row for row in standing if row not in reading])
                return logits[list(reading)]
            calls |= {row: logits[row] for row in group}
            written.append(overwritten.with_contents_now(self.stores))
            overwritten.restore(self.stores, standing)
        for group, contents in zip(groups, written, strict=True):
            contents.restore(self.stores, group)
        return torch.stack([calls[row] for row in reading])

    def _groups(self, reading: Reading) -> list[list[int]]:
        """The rows that read, those with the same filters together."""
        groups = defaultdict[int, list[int]](list)
        for row, session in reading.items():
            groups[id(self._decoder.inputs.filters_for(session.slots))].append(row)
        return list(groups.values())

    @torch.no_grad()
    def step(self, tokens: Mapping[int, int], reading: Reading) -> torch.Tensor:
        """Read one token into each row named in `tokens`; logits [n, V] in their order.

        If anything fails, no row has changed. `reading`: the rows' sessions, which the caller holds.
        """
        with self._decoder.running():
            return self._step(tokens, reading)

    def _step(self, tokens: Mapping[int, int], reading: Reading) -> torch.Tensor:
        decoder, overwritten = self._decoder, None
        # A broken session's tokens are lost already.
        standing = {row: s for row, s in enumerate(self._sessions) if s is not None and not s.is_broken}
        states = {row: session.state for row, session in standing.items()}
        moving = [row for row, session in reading.items() if overflows(decoder, session.rows[0], 1)]
        copies = {row: reading[row].copied_stores() for row in moving}
        try:
            for row, session in reading.items():
                with naming(row):
                    session.refuse_if_cancelled()
                move_keys_back(decoder, session, [0], 1)
            # Others read a token at position 0, which every model has.
            rows, sizes = [Row()] * len(self), [decoder.sizes] * len(self)
            for row, session in reading.items():
                rows[row], sizes[row] = session.rows[0], session.sizes
            overwritten = decoder.watch(self.stores, rows, sizes)
            ids = torch.tensor([[tokens.get(row, 0)] for row in range(len(self))], device=decoder.device)
            if decoder.graphs.follows_length:
                logits = self._one_by_one(ids, reading)
            else:
                logits = self._together(ids, rows, sizes, reading, list(standing), overwritten)
            for row, session in reading.items():
                if session.take_back:
                    session.note_overwritten(overwritten.of_rows([row])._replace(rows=(0,)).cloned())
                session.advance([0], 1)
                session.note_read(ids[row : row + 1], [TokenColumns(0, 1)])
            return logits
        except BaseException:
            with ExitStack() as stack:
                for row, session in standing.items():
                    stack.enter_context(session.restoring(states[row], nullcontext()))
                if overwritten is not None:
                    overwritten.restore(self.stores, list(standing))
                for row, copy in copies.items():
                    self._row_stores[row].copy_(copy)
            raise
