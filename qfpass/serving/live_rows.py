"""The requests in a pool's rows: chunks of their prompts are read, and a step is one call for all."""

import torch

from ..model.pool import Pool
from .answer import FinishReason
from .kept_sessions import KeptSessions, digests
from .observer import Observer
from .request import Request


class LiveRows:
    """Requests in the rows of a pool; used by one thread.

    Args:
        chunk: tokens of a prompt that are read at a time.
        kept: what earlier requests have read.

    Attributes:
        requests: those in the rows; the one whose prompt is read next stands first.
        mean_seconds: from a request to the end of its answer; a running mean.
    """

    def __init__(self, pool: Pool, chunk: int, kept: KeptSessions, observer: Observer) -> None:
        self._pool, self._chunk, self._kept, self._observer = pool, chunk, kept, observer
        self.requests = list[Request]()
        self.mean_seconds = 1.0

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def is_reading(self) -> bool:
        """Whether a row has some of its prompt left to read."""
        return any(request.is_reading for request in self.requests)

    @property
    def is_answering(self) -> bool:
        """Whether a row's next token has been chosen, for a step to read."""
        return any(request.next_token is not None for request in self.requests)

    def may_join(self, request: Request) -> bool:
        """Whether a row is free, and no other row is just reading what this request shares with it."""
        if not self._pool.free:
            return False
        beginning = request.ids[: request.shared]
        return not beginning or not any(
            other.read < other.shared and other.ids[: other.shared] == beginning for other in self.requests
        )

    def join(self, request: Request) -> None:
        """Give a request a row, in which it goes on where the longest kept beginning of its ids stands."""
        try:
            session, read = self._kept.find(request.ids, request.name, request.shared)
            request.row, request.read = self._pool.join(session), read
        except Exception as error:
            request.answer.end(None, error)
            return
        request.answer.cached_tokens = read
        self.requests.append(request)

    def end_those(self, all_are: bool = False) -> None:
        """End requests that were cancelled (or all, if `all_are`), and those whose deadline has passed."""
        for request in list(self.requests):
            if all_are or request.answer.is_cancelled:
                self._end(request, "cancelled")
            elif request.is_late:
                self._end(request, None, request.lateness())

    def read_chunk(self) -> None:
        """Read one chunk of one row's prompt; rows take turns."""
        request = next(request for request in self.requests if request.is_reading)
        self.requests.remove(request)
        self.requests.append(request)
        end = min(request.read + self._chunk, request.next_mark())
        try:
            logits = self._pool.read(request.row, torch.tensor(request.ids[request.read : end]))
        except Exception as error:
            self._end(request, None, error)
            return
        request.read = end
        if end in request.marks:
            self._keep(request, end)
        if not request.is_reading:
            self._put(request, logits[-1])

    def step(self) -> None:
        """Read the chosen token of every row that has one, in one call, and choose the next."""
        stepping = {r.row: r for r in self.requests if r.next_token is not None}
        tokens = {row: r.next_token for row, r in stepping.items() if r.next_token is not None}
        try:
            logits = self._pool.step(tokens)
        except Exception as error:
            for request in stepping.values():
                self._end(request, None, error)
            return
        for request, row_logits in zip(stepping.values(), logits, strict=True):
            self._put(request, row_logits)

    def _put(self, request: Request, logits: torch.Tensor) -> None:
        """Choose a token, and end the answer if that is its last one."""
        token, answer = request.sampler.choose(logits), request.answer
        is_first = not answer.tokens
        seconds = answer.put(token)
        (self._observer.first_token if is_first else self._observer.next_token)(seconds)
        request.next_token = token
        if token in request.stop:
            self._end(request, "stop")
        elif len(answer.tokens) >= request.max_new_tokens:
            self._end(request, "length")

    def _keep(self, request: Request, tokens: int) -> None:
        """Keep a copy of a row, which has read the first `tokens` ids, and go on."""
        name = None if tokens == request.shared else request.name
        digest = digests(request.ids, [tokens], name)[tokens]
        if not self._kept.touch(digest, tokens) and self._kept.make_room():
            session = self._pool.leave(request.row)
            request.row = self._pool.join(session)
            self._kept.keep(digest, tokens, session)

    def _end(self, request: Request, reason: FinishReason | None, error: Exception | None = None) -> None:
        """Free the row; where the prompt has been read, what the row has read is kept for the next turn."""
        self.requests.remove(request)
        request.next_token = None
        text = request.text
        whole_prompt = not request.is_reading and error is None
        try:
            if whole_prompt and self._kept.make_room():
                digest = digests(text, [len(text)], request.name)[len(text)]
                self._kept.keep(digest, len(text), self._pool.leave(request.row))
            else:
                self._pool.drop(request.row)
        finally:  # a pool that is broken must not leave an answer waiting
            request.answer.end(reason, error)
        self.mean_seconds += 0.1 * (request.answer.seconds - self.mean_seconds)
        self._observer.ended(request.answer, len(text))
