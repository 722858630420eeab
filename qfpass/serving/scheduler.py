"""Scheduler: a thread that answers many requests at once, over one pool of rows."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ClosedError, ConfigError, InputError, QueueFullError
from ..model.compiled_decoder import decoder_of
from .answer import Answer
from .check_request import check_request, context_length
from .kept_sessions import KeptSessions
from .live_rows import LiveRows
from .observer import Observer
from .request import Request
from .sampling import Sampler, Sampling
from .session_files import SessionFiles

_log = logging.getLogger(__name__)
# Beyond the pool and what is kept, sessions exist for a moment while a row is left, or read with an undo.
_TRANSIENT_SESSIONS = 2


class Scheduler:
    """Answers requests over a compiled model; its methods may be called from any thread.

    All answering rows take their steps in one call. Between two steps at most one chunk of one prompt is
    read, so no row waits longer. Close it, or use it as a context.

    Args:
        model: from `qfpass.compile` or `qfpass.load`.
        rows: how many requests are worked on at once.
        memory: bytes of keys and values at most: of the pool, and of conversations kept for their next turn;
            None for the pool and two kept sessions for each row.
        disk: bytes of conversations on disk at most, where those go that were not used for longest.
        folder: for these files. They then outlive the scheduler, and are written at the end of each turn:
            another one finds them, also in another process. None for a temporary folder.
        queue: how many requests may wait for a row.
        prompt_share: the share of the time for prompts while other rows answer.
        observer: is told what happens.
        warm_up: compile all that requests will need before the first one.

    Raises:
        ConfigError: a setting can't work, such as more rows than the memory holds.
    """

    def __init__(
        self, model: Any, *, rows: int = 16, memory: int | None = None, disk: int = 2**34,
        folder: Path | None = None, queue: int = 64, prompt_share: float = 0.5,
        observer: Observer | None = None, warm_up: bool = False,
    ) -> None:  # fmt: skip
        if not 0 < prompt_share <= 1:
            raise ConfigError(f"prompt_share must lie between 0 and 1, not be {prompt_share!r}.")
        for name, value, least in (("rows", rows, 1), ("queue", queue, 0), ("disk", disk, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}.")
        self._decoder = decoder_of(model)
        row_nbytes = model.pool(rows=1).nbytes
        room = _room_for_kept(row_nbytes, rows, memory)
        self._pool = model.pool(rows=rows)
        files = SessionFiles(folder, disk, self._decoder.identity)
        self._kept = KeptSessions(model.session, row_nbytes, room, files)
        if warm_up:
            self._pool.warm_up()
        # Where numbers hang on a text's whole length, a prompt read in parts would be another text.
        whole, sizes = self._decoder.graphs.follows_length, self._decoder.sizes
        chunk = sizes.context_length if whole else sizes.chunk
        self._live = LiveRows(self._pool, chunk, self._kept, observer or Observer())
        self._queue, self._prompt_share = queue, prompt_share
        self._waiting = deque[Request]()
        self._work = threading.Condition()  # guards _waiting, _closing and _cancelling
        self._closing = self._cancelling = False
        self._owed = -1.0  # seconds of steps before the next chunk; at least one step if 0
        self._thread = threading.Thread(target=self._run, name="qfpass scheduler", daemon=True)
        self._thread.start()

    def submit(
        self, ids: Sequence[int], sampling: Sampling | None = None, *, max_new_tokens: int = 256,
        stop: Iterable[int] = (), name: str = "", shared: int = 0, marks: Iterable[int] | None = None,
        deadline: float | None = None,
    ) -> Answer:  # fmt: skip
        """Ask for the answer to a text; returns at once.

        Args:
            ids: the whole text, earlier turns included: what a kept session has read of it isn't read again.
            stop: token ids after which the answer ends.
            name: of a conversation. What it has read is kept for requests of the same name only.
            shared: the first `shared` ids are read once for everyone, whatever their names.
            marks: lengths of `ids` at which what has been read is kept, since a later turn may differ from
                there on; None for the end of the prompt. The end of an answer is kept anyway.
            deadline: seconds from now.

        Raises:
            InputError: a value is wrong, or the text doesn't fit the context.
            QueueFullError: too many requests wait.
            ClosedError: the scheduler is closing.
        """
        ids, stop = [int(token) for token in ids], frozenset(stop)
        sampling = sampling or Sampling()
        check_request(self._decoder, ids, sampling, max_new_tokens, deadline)
        if self.context_length is not None:  # the last token of an answer is not read
            max_new_tokens = min(max_new_tokens, self.context_length - len(ids) + 1)
        kept_at = tuple(sorted({len(ids)} if marks is None else set(marks)))
        if shared and shared not in kept_at:
            kept_at = tuple(sorted((*kept_at, shared)))
        if not 0 <= shared <= len(ids) or not all(0 < mark <= len(ids) for mark in kept_at):
            raise InputError(f"shared and marks must lie within the {len(ids)} ids.")
        request = Request(
            ids, Answer(len(ids), self._wake), Sampler(sampling, ids), max_new_tokens, stop, kept_at, shared,
            name, None if deadline is None else time.monotonic() + deadline,
        )  # fmt: skip
        with self._work:
            if self._closing:
                raise ClosedError("the scheduler is closing and takes no more requests.")
            if len(self._waiting) >= self._queue + self._pool.rows - len(self._live):
                after = math.ceil(self._live.mean_seconds * (1 + len(self._waiting) / self._pool.rows))
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait already: try again in {after} s.", after
                )
            self._waiting.append(request)
            self._work.notify()
        return request.answer

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests; let those in work and in the queue end, or cancel them; end the thread.

        `timeout`: seconds after which what is left is cancelled.
        """
        with self._work:
            self._closing = True
            self._cancelling |= not drain
            self._work.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._work:
                self._cancelling = True
            self._thread.join()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(drain=error is None)

    @property
    def rows(self) -> int:
        """How many requests are worked on at once."""
        return self._pool.rows

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return not self._closing

    @property
    def rows_in_use(self) -> int:
        """How many requests are worked on now."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool and of what is kept in memory."""
        return self._pool.nbytes + self._kept.nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes of what is kept on disk."""
        return self._kept.disk_nbytes

    @property
    def context_length(self) -> int | None:
        """The most tokens of a text and its answer; None if texts may go on past the context."""
        return context_length(self._decoder)

    def _wake(self) -> None:
        with self._work:
            self._work.notify()

    def _run(self) -> None:
        try:
            while self._is_needed():
                if (request := self._next_request()) is not None:
                    self._live.join(request)
                self._live.end_those(self._cancelling)
                self._work_on()
        except BaseException as error:  # a fault of ours: no answer may wait forever
            _log.exception("the scheduler ends")
            self._end_all(error)
        finally:
            self._kept.close()

    def _work_on(self) -> None:
        """One call: a chunk of a prompt if it is time for one, else a step of all answering rows."""
        started = time.monotonic()
        if self._live.is_reading and not (self._live.is_answering and self._owed >= 0):
            self._live.read_chunk()
            self._owed = (time.monotonic() - started) * (1 - self._prompt_share) / self._prompt_share
        elif self._live.is_answering:
            self._live.step()
            self._owed -= time.monotonic() - started

    def _is_needed(self) -> bool:
        """Wait until there is anything to do; False once all is done."""
        with self._work:
            self._work.wait_for(lambda: self._waiting or len(self._live) or self._closing)
            return bool(self._waiting or len(self._live) or not self._closing)

    def _next_request(self) -> Request | None:
        """The first waiting request that may join, if any; those that were cancelled or are late end."""
        with self._work:
            for request in list(self._waiting):
                if request.answer.is_cancelled or self._cancelling:
                    self._waiting.remove(request)
                    request.answer.end("cancelled")
                elif request.is_late:
                    self._waiting.remove(request)
                    request.answer.end(None, request.lateness())
            chosen = next((request for request in self._waiting if self._live.may_join(request)), None)
            if chosen is not None:
                self._waiting.remove(chosen)
            return chosen

    def _end_all(self, error: BaseException) -> None:
        with self._work:
            self._closing = True
            for request in (*self._waiting, *self._live.requests):
                request.answer.end(None, ClosedError(f"the scheduler has ended: {error!r}."))
            self._waiting.clear()


def _room_for_kept(row_nbytes: int, rows: int, memory: int | None) -> int:
    """Bytes for kept sessions: what the pool leaves of `memory`."""
    if memory is None:
        return 2 * row_nbytes * rows  # where its prompt ends, and its answer
    fit = memory // row_nbytes - _TRANSIENT_SESSIONS
    if fit < rows:
        raise ConfigError(
            f"a row takes {row_nbytes} bytes, so memory={memory} holds {max(0, fit)} rows, not {rows}: lower "
            "rows, or raise memory or the ratio."
        )
    return row_nbytes * (fit - rows)
