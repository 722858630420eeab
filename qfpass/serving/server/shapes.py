"""The shapes of answers: those of OpenAI's chats, plain completions and responses, whole or as events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ending:
    """How an answer ended: its text, whether by its length, and the tokens of prompt and answer."""

    text: str
    by_length: bool
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int

    @property
    def finish_reason(self) -> str:
        """In the words of chats and completions."""
        return "length" if self.by_length else "stop"


class Shape(ABC):
    """Turns an answer of the model served as `model` into JSON, and its pieces into server-sent events."""

    def __init__(self, model: str) -> None:
        self._model, self._time, self._id = model, int(time.time()), uuid.uuid4().hex

    @abstractmethod
    def whole(self, ending: Ending) -> dict[str, Any]:
        """The answer as one object."""

    @abstractmethod
    def opening(self) -> Iterator[str]:
        """The events before the first piece."""

    @abstractmethod
    def piece(self, text: str) -> str:
        """The event of one piece."""

    @abstractmethod
    def closing(self, ending: Ending) -> Iterator[str]:
        """The events after the last piece."""

    def failure(self, body: dict[str, Any]) -> str:
        """The event that tells of an error; the status is sent already."""
        return _data(body)


class CompletionShape(Shape):
    """/v1/completions."""

    kind, prefix, chunk = "text_completion", "cmpl", "text_completion"

    def __init__(self, model: str, with_usage: bool) -> None:
        super().__init__(model)
        self._with_usage = with_usage
        self._head = {"id": f"{self.prefix}-{self._id}", "created": self._time, "model": model}

    def whole(self, ending: Ending) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": ending.finish_reason, "logprobs": None}
        head = {**self._head, "object": self.kind}
        return {**head, "choices": [{**choice, **self._said(ending.text)}], "usage": _usage(ending)}

    def opening(self) -> Iterator[str]:
        return iter(())

    def piece(self, text: str) -> str:
        return self._event({"text": text}, None)

    def closing(self, ending: Ending) -> Iterator[str]:
        yield self._event(self._nothing(), ending.finish_reason)
        if self._with_usage:
            yield _data({**self._head, "object": self.chunk, "choices": [], "usage": _usage(ending)})
        yield "data: [DONE]\n\n"

    def _said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _nothing(self) -> dict[str, Any]:
        return {"text": ""}

    def _event(self, said: dict[str, Any], finish_reason: str | None) -> str:
        choice = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        return _data({**self._head, "object": self.chunk, "choices": [{**choice, **said}]})


class ChatShape(CompletionShape):
    """/v1/chat/completions."""

    kind, prefix, chunk = "chat.completion", "chatcmpl", "chat.completion.chunk"

    def opening(self) -> Iterator[str]:
        yield self._event({"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, text: str) -> str:
        return self._event({"delta": {"content": text}}, None)

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _nothing(self) -> dict[str, Any]:
        return {"delta": {}}


class ResponseShape(Shape):
    """/v1/responses. `asked` are fields of the request that the response repeats."""

    def __init__(self, model: str, asked: dict[str, Any]) -> None:
        super().__init__(model)
        self._asked, self._count, self._item = asked, 0, f"msg_{self._id}"
        self._place = {"item_id": self._item, "output_index": 0, "content_index": 0}

    def whole(self, ending: Ending) -> dict[str, Any]:
        status = "incomplete" if ending.by_length else "completed"
        usage = {
            "input_tokens": ending.prompt_tokens, "output_tokens": ending.new_tokens,
            "total_tokens": ending.prompt_tokens + ending.new_tokens,
            "input_tokens_details": {"cached_tokens": ending.cached_tokens},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        why = {"reason": "max_output_tokens"} if ending.by_length else None
        output = [self._message(status, [_part(ending.text)])]
        return {**self._object(status, output), "usage": usage, "incomplete_details": why}

    def opening(self) -> Iterator[str]:
        begun = self._object("in_progress", [])
        yield self._event("response.created", {"response": begun})
        yield self._event("response.in_progress", {"response": begun})
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", {"output_index": 0, "item": item})
        yield self._event("response.content_part.added", {**self._place, "part": _part("")})

    def piece(self, text: str) -> str:
        return self._event("response.output_text.delta", {**self._place, "delta": text, "logprobs": []})

    def closing(self, ending: Ending) -> Iterator[str]:
        done = {**self._place, "text": ending.text, "logprobs": []}
        yield self._event("response.output_text.done", done)
        yield self._event("response.content_part.done", {**self._place, "part": _part(ending.text)})
        whole = self.whole(ending)
        yield self._event("response.output_item.done", {"output_index": 0, "item": whole["output"][0]})
        yield self._event(f"response.{whole['status']}", {"response": whole})

    def failure(self, body: dict[str, Any]) -> str:
        error = body["error"]
        return self._event("error", {"code": error["code"], "message": error["message"], "param": None})

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._asked, "id": f"resp_{self._id}", "object": "response", "created_at": self._time,
            "model": self._model, "status": status, "output": output, "error": None,
            "incomplete_details": None, "usage": None, "store": False, "previous_response_id": None,
        }  # fmt: skip

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        item = {"id": self._item, "type": "message", "role": "assistant"}
        return {**item, "status": status, "content": content}

    def _event(self, kind: str, content: dict[str, Any]) -> str:
        numbered = {"type": kind, "sequence_number": self._count, **content}
        self._count += 1
        return f"event: {kind}\n{_data(numbered)}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(ending: Ending) -> dict[str, Any]:
    return {
        "prompt_tokens": ending.prompt_tokens, "completion_tokens": ending.new_tokens,
        "total_tokens": ending.prompt_tokens + ending.new_tokens,
        "prompt_tokens_details": {"cached_tokens": ending.cached_tokens},
    }  # fmt: skip


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
