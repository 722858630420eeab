"""Errors as OpenAI's clients read them."""

from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from ...errors import ClosedError, DeadlineError, InputError, QFPassError, QueueFullError


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(status: int, message: str, code: str | None = None, **more: Any) -> JSONResponse:
    """An error as a response; `more`: `param`, or `headers`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = more.pop("headers", None)
    return JSONResponse(error_body(message, kind, code, **more), status, headers)


def of_error(error: Exception) -> JSONResponse:
    """What a request is told that ended by an error."""
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(error.retry_after)}
        return refusal(429, str(error), "queue_full", headers=headers)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return refusal(400, message[:500], "invalid_body", param=where or None)
    if isinstance(error, InputError):
        return refusal(400, str(error)[:2000], "invalid_request")
    if isinstance(error, ClosedError):
        return refusal(503, str(error), "closing", headers={"Retry-After": "10"})
    if isinstance(error, DeadlineError):
        return refusal(504, str(error), "deadline")
    return refusal(500, "the server has failed.", "internal")


def handlers() -> dict[Any, Any]:
    """For Starlette: a handler for each kind of exception."""

    async def ours(request: HttpRequest, error: Exception) -> JSONResponse:
        return of_error(error)

    async def of_route(request: HttpRequest, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return refusal(error.status_code, str(error.detail), headers=error.headers)

    return {
        QFPassError: ours, ValidationError: ours, HTTPException: of_route, Exception: ours,
    }  # fmt: skip
