"""An answer in OpenAI's shapes: one JSON object, or a stream of server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from ...errors import ClosedError
from ..answer import Answer
from ..answer_text import AnswerText
from .refusals import of_error


class Reply:
    """An answer that is turned into a response.

    Args:
        model: the name by which the model is served.
        is_chat: whether the shapes are those of chats or of plain completions.
    """

    def __init__(self, answer: Answer, text: AnswerText, model: str, is_chat: bool) -> None:
        self._answer, self._text, self._is_chat, self._tokens = answer, text, is_chat, 0
        kind = ("chat.completion", "chatcmpl") if is_chat else ("text_completion", "cmpl")
        self._kind = kind[0]
        self._head = {"id": f"{kind[1]}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def whole(self, request: HttpRequest) -> Response:
        """The response with the whole answer; a client that goes away cancels it."""
        reading = asyncio.ensure_future(self._read())
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                self._answer.cancel()
            text = await reading
        finally:
            self._answer.cancel()
            leaving.cancel()
        choice = {"index": 0, "finish_reason": self._finish_reason(), "logprobs": None}
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        head = {**self._head, "object": self._kind}
        return JSONResponse({**head, "choices": [{**choice, **said}], "usage": self._usage()})

    def stream(self, with_usage: bool) -> Response:
        """The response with an event for each piece of the answer; a client that goes away cancels it."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(with_usage), 200, headers, "text/event-stream")

    async def _read(self) -> str:
        return "".join([piece async for piece in self._pieces()])

    async def _pieces(self) -> AsyncIterator[str]:
        async for token in self._answer:
            self._tokens += 1
            if piece := self._text.add(token):
                yield piece
            if self._text.is_stopped:
                self._answer.cancel()
                break
        if self._answer.finish_reason == "cancelled" and not self._text.is_stopped:
            raise ClosedError("the server has closed before the answer's end.")
        if rest := self._text.finish():
            yield rest

    async def _events(self, with_usage: bool) -> AsyncIterator[str]:
        try:
            if self._is_chat:
                yield self._event({"role": "assistant", "content": ""}, None)
            async for piece in self._pieces():
                yield self._event({"content": piece} if self._is_chat else piece, None)
            yield self._event({} if self._is_chat else "", self._finish_reason())
            if with_usage:
                yield _event({**self._head_of_chunk(), "choices": [], "usage": self._usage()})
        except Exception as error:  # the status is sent already
            yield _event(json.loads(bytes(of_error(error).body)))
            return
        finally:
            self._answer.cancel()
        yield "data: [DONE]\n\n"

    def _event(self, said: dict[str, Any] | str, finish_reason: str | None) -> str:
        choice = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        name = "delta" if self._is_chat else "text"
        return _event({**self._head_of_chunk(), "choices": [{**choice, name: said}]})

    def _head_of_chunk(self) -> dict[str, Any]:
        return {**self._head, "object": self._kind + (".chunk" if self._is_chat else "")}

    def _finish_reason(self) -> str:
        return "length" if self._answer.finish_reason == "length" and not self._text.is_stopped else "stop"

    def _usage(self) -> dict[str, Any]:
        prompt = self._answer.prompt_tokens
        return {
            "prompt_tokens": prompt, "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": self._answer.cached_tokens or 0},
        }  # fmt: skip


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
