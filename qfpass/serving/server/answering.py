"""An answer as an HTTP response: one JSON object, or a stream of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from ...errors import ClosedError
from ..answer import Answer
from ..answer_text import AnswerText
from .refusals import of_error
from .shapes import Ending, Shape


class Reply:
    """An answer that is turned into a response of a shape."""

    def __init__(self, answer: Answer, text: AnswerText, shape: Shape) -> None:
        self._answer, self._text, self._shape, self._tokens = answer, text, shape, 0
        self._said = list[str]()

    async def whole(self, request: HttpRequest) -> Response:
        """The response with the whole answer; a client that goes away cancels it."""
        reading = asyncio.ensure_future(self._read())
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._answer.cancel()
            await reading
        finally:
            self._answer.cancel()
            leaving.cancel()
        return JSONResponse(self._shape.whole(self._ending()))

    def stream(self) -> Response:
        """The response with an event for each piece of the answer; a client that goes away cancels it."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(), 200, headers, "text/event-stream")

    async def _read(self) -> None:
        async for _ in self._pieces():
            pass

    async def _pieces(self) -> AsyncIterator[str]:
        async for token in self._answer:
            self._tokens += 1
            if piece := self._text.add(token):
                self._said.append(piece)
                yield piece
            if self._text.is_stopped:
                self._answer.cancel()
                break
        if self._answer.finish_reason == "cancelled" and not self._text.is_stopped:
            raise ClosedError("the server has closed before the answer's end.")
        if rest := self._text.finish():
            self._said.append(rest)
            yield rest

    async def _events(self) -> AsyncIterator[str]:
        try:
            for event in self._shape.opening():
                yield event
            async for piece in self._pieces():
                yield self._shape.piece(piece)
            for event in self._shape.closing(self._ending()):
                yield event
        except Exception as error:  # the status is sent already
            yield self._shape.failure(json.loads(bytes(of_error(error).body)))
        finally:
            self._answer.cancel()

    def _ending(self) -> Ending:
        by_length = self._answer.finish_reason == "length" and not self._text.is_stopped
        cached = self._answer.cached_tokens or 0
        return Ending("".join(self._said), by_length, self._answer.prompt_tokens, self._tokens, cached)


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
