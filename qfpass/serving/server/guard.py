"""Who may ask, and how much: a bearer token, bodies of JSON up to a size, sent within a time."""

import asyncio
import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import refusal

OPEN_PATHS = ("/health",)  # for load balancers, which have no token
BODY_SECONDS = 30


class Guard:
    """An ASGI application that refuses requests, or hands them with their whole body to another one.

    Args:
        token: which every request must bring, except for `OPEN_PATHS`; None for none.
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, token: str | None, most_bytes: int) -> None:
        self._app, self._token, self._most_bytes = app, token, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refuse(scope, headers)
        body = b""
        if answer is None and scope["method"] == "POST":
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body, answer = await self._read(headers, receive)
            except TimeoutError:
                answer = refusal(408, f"the body has not come within {BODY_SECONDS} s.")
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self._app(scope, _replaying(body, receive), send)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                challenge = {"WWW-Authenticate": "Bearer"}
                return refusal(401, "this server wants its token.", "invalid_api_key", headers=challenge)
        # A web page of another origin can't send this type without being allowed to.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return refusal(415, "the body must be application/json.")
        return None

    async def _read(self, headers: Headers, receive: Receive) -> tuple[bytes, Response | None]:
        too_large = refusal(
            413, f"the body is larger than {self._most_bytes} bytes.", headers={"Connection": "close"}
        )
        # Up to twice the bound is read: a client that is cut off while it sends never sees the refusal.
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > 2 * self._most_bytes:
            return b"", too_large
        parts, size = list[bytes](), 0
        while size <= 2 * self._most_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", refusal(400, "the body has not come to its end.")
            part = message.get("body", b"")
            size += len(part)
            if size <= self._most_bytes:
                parts.append(part)
            if not message.get("more_body"):
                break
        return (b"".join(parts), None) if size <= self._most_bytes else (b"", too_large)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body first."""
    first: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
