"""The application: OpenAI's routes over one scheduler and one model, which no request can change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ...errors import InputError
from ..answer_text import AnswerText
from ..conversation import PromptIds, read_chat, read_prompt
from ..sampling import Sampling
from ..scheduler import Scheduler
from .answering import Reply
from .bodies import ChatBody, CompletionBody
from .guard import Guard
from .metrics import Metrics
from .refusals import handlers, refusal
from .response_body import ResponseBody

SESSION_HEADER, LONGEST_NAME = "x-session-id", 256


@dataclass(frozen=True)
class Served:
    """What is served, and within which bounds.

    Attributes:
        name: of the model, which requests must state.
        stop: token ids that end an answer.
        sampling: where a request says nothing.
        token: that requests must bring; None for none.
        most_bytes: of a request's body.
        most_new_tokens: of an answer; a request that asks for more gets so many.
        deadline: seconds for a request, its time in the queue included; None for no limit.
    """

    name: str
    stop: frozenset[int] = frozenset()
    sampling: Sampling = Sampling()
    token: str | None = None
    most_bytes: int = 2**23
    most_new_tokens: int = 4096
    deadline: float | None = None


def build_app(scheduler: Scheduler, tokenizer: Any, served: Served, metrics: Metrics) -> ASGIApp:
    """The ASGI application; when it shuts down it closes the scheduler, whose running answers end."""
    metrics.watch(scheduler)
    routes = Routes(scheduler, tokenizer, served, metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scheduler.close)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.complete, methods=["POST"]),
            Route("/v1/responses", routes.responses, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/metrics", routes.measured),
        ],
        exception_handlers=handlers(),
        lifespan=lifespan,
    )
    return Guard(app, served.token, served.most_bytes)


class Routes:
    """What each path answers."""

    def __init__(self, scheduler: Scheduler, tokenizer: Any, served: Served, metrics: Metrics) -> None:
        self._scheduler, self._tokenizer, self._served = scheduler, tokenizer, served
        self._metrics = metrics

    async def chat(self, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        return await self._converse(request, ChatBody.model_validate_json(await request.body()))

    async def complete(self, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        body = CompletionBody.model_validate_json(await request.body())
        prompt = await asyncio.to_thread(read_prompt, self._tokenizer, body.prompt)
        return await self._answer(request, body, prompt)

    async def responses(self, request: HttpRequest) -> Response:
        """POST /v1/responses."""
        return await self._converse(request, ResponseBody.model_validate_json(await request.body()))

    async def models(self, request: HttpRequest) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: HttpRequest) -> Response:
        """GET /v1/models/NAME."""
        return self._wrong_model(request.path_params["name"]) or JSONResponse(self._model())

    async def health(self, request: HttpRequest) -> Response:
        """GET /health."""
        if self._scheduler.is_open:
            return JSONResponse({"status": "ok"})
        return refusal(503, "the server is closing.", "closing")

    async def measured(self, request: HttpRequest) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _converse(self, request: HttpRequest, body: ChatBody | ResponseBody) -> Response:
        # In a thread: templates and tokenizers take their time over long texts.
        prompt = await asyncio.to_thread(
            read_chat, self._tokenizer, body.texts(), body.offered_tools, body.chat_template_kwargs
        )
        return await self._answer(request, body, prompt)

    async def _answer(
        self, request: HttpRequest, body: ChatBody | CompletionBody | ResponseBody, prompt: PromptIds
    ) -> Response:
        if (wrong := self._wrong_model(body.model)) is not None:
            return wrong
        served = self._served
        most = min(body.most_tokens or served.most_new_tokens, served.most_new_tokens)
        text = AnswerText(self._tokenizer, body.stop_strings)
        answer = self._scheduler.submit(
            prompt.ids, body.sampling(served.sampling), max_new_tokens=most, stop=served.stop,
            name=_session_name(request), shared=prompt.shared, marks=prompt.marks, deadline=served.deadline,
        )  # fmt: skip
        reply = Reply(answer, text, body.shape(served.name))
        return reply.stream() if body.stream else await reply.whole(request)

    def _model(self) -> dict[str, Any]:
        return {"id": self._served.name, "object": "model", "created": 0, "owned_by": "qfpass"}

    def _wrong_model(self, name: str) -> Response | None:
        if name == self._served.name:
            return None
        message = f"this server has the model {self._served.name!r} alone, not {name[:200]!r}."
        return refusal(404, message, "model_not_found")


def _session_name(request: HttpRequest) -> str:
    name = request.headers.get(SESSION_HEADER, "")
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(f"{SESSION_HEADER} must have at most {LONGEST_NAME} printable characters.")
    return name
