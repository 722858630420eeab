"""An answer as a stream of tokens, which a scheduler's thread writes and others read."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


class Answer:
    """A stream of token ids: `for token in answer` in a thread, `async for token in answer` in asyncio.

    It ends after the stop token, which is in it; at `max_new_tokens` or the end of the context; or after
    `cancel`. Reading raises what ended it otherwise, after the tokens that came before.

    Attributes:
        prompt_tokens: the number of the request's ids.
        cached_tokens: how many of them had been read before, None while the request waits.
        finish_reason: why it ended; None while it hasn't, or if an error ended it.
    """

    def __init__(self, prompt_tokens: int, cancelled: Callable[[], None] = lambda: None) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self.is_cancelled = False
        self._on_cancel = cancelled
        self._tokens = list[int]()
        self._error: Exception | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._wakers = list[Callable[[], None]]()
        self._begun = self._last = time.monotonic()

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        return list(self._tokens)

    @property
    def has_ended(self) -> bool:
        """Whether no more tokens will come."""
        return self._ended

    @property
    def seconds(self) -> float:
        """From the request to the newest token, or to the end."""
        return self._last - self._begun

    def cancel(self) -> None:
        """Let it end within one step or chunk; an answer that has ended stays as it is."""
        self.is_cancelled = True
        self._on_cancel()

    def result(self, timeout: float | None = None) -> list[int]:
        """All tokens, once the answer has ended.

        Raises:
            TimeoutError: it hasn't ended after `timeout` seconds.
            QFPassError: an error ended it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"the answer has not ended after {timeout} seconds.")
        if self._error is not None:
            raise self._error
        return self.tokens

    def __iter__(self) -> Iterator[int]:
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=at: len(self._tokens) > at or self._ended)  # type: ignore[misc]
            if at == len(self._tokens):
                break
            yield self._tokens[at]
            at += 1
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[int]:
        loop, came, at = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(came.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while True:
                came.clear()
                # Read before the tokens: what ends an answer is written after its last token.
                ended = self._ended
                if at < len(self._tokens):
                    yield self._tokens[at]
                    at += 1
                elif ended:
                    break
                else:
                    await came.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)
        if self._error is not None:
            raise self._error

    def put(self, token: int) -> float:
        """Add a token; the seconds since the one before it, or since the request. For the scheduler."""
        now = time.monotonic()
        since, self._last = now - self._last, now
        with self._changed:
            self._tokens.append(token)
            self._wake()
        return since

    def end(self, reason: FinishReason | None, error: Exception | None = None) -> None:
        """End it, for a reason or with an error. For the scheduler."""
        with self._changed:
            self.finish_reason, self._error = reason, error
            self._last = time.monotonic()
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
