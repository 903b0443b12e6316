"""What stands between a client and the service: errors as JSON, API keys, and limits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgray.errors import LINE, UserError, brief
from imgray.serving.metrics import metrics

API_KEYS, ADMIN_KEYS = "IMGRAY_API_KEYS", "IMGRAY_ADMIN_KEYS"
RETRY_AFTER = {"Retry-After": "1"}
log = logging.getLogger("ray.serve")


class Refusal(Exception):
    """An answer with a status from 400 on: `message` for a person, `field` at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.headers = headers or {}


def overloaded(reason: str) -> Refusal:
    """503: come again."""
    metrics().rejected.inc(1, {"reason": reason})
    return Refusal(503, f"too much to do ({reason}); come again", headers=RETRY_AFTER)


class Fault(BaseModel):
    """What is wrong."""

    field: str | None = Field(description="the part of the request that is at fault")
    message: str


class ErrorAnswer(BaseModel):
    """An error as every route gives it."""

    error: Fault


def faulty(message: str, field: str | None) -> ErrorAnswer:
    """An error, to be answered."""
    return ErrorAnswer(error=Fault(field=field and brief(field), message=brief(message, LINE)))


def error(status: int, message: str, field: str | None, headers: Any = None) -> JSONResponse:
    """An error with its status."""
    return JSONResponse(faulty(message, field).model_dump(), status, headers)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the errors that a route may answer with."""
    return {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def answer_errors(app: FastAPI) -> None:
    """Turn what an application refuses into JSON; what fails in it is left to `Counted`."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, fault: Refusal) -> JSONResponse:
        return error(fault.status, fault.message, fault.field, fault.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, fault: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {fault.detail}"
        headers = {"Allow": _methods(request)} if fault.status_code == 405 else fault.headers
        return error(fault.status_code, message, None, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, fault: RequestValidationError) -> JSONResponse:
        first = fault.errors()[0]
        return error(422, first["msg"], ".".join(str(part) for part in first["loc"][1:]))


def _methods(request: Request) -> str:
    """What may be done with a path: by all of its routes, where Starlette names the first's."""
    routes = (r for r in _routes(request.app) if r.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({name for r in routes for name in getattr(r, "methods", None) or ()}))


def _routes(router: Any) -> Iterator[Any]:
    """The routes of a router, and of those that it includes, such as that of Serve's class."""
    for route in router.routes:
        included = getattr(route, "original_router", None)
        yield from _routes(included) if included else (route,)


class Keys:
    """API keys, from a file of one a line and from the environment, of several by commas.

    Only their digests are kept, and a key is compared with all of them in constant time. So they
    are read once, where an application is built, and travel to its replicas: what the environment
    of a replica holds decides nothing.
    """

    def __init__(self, file: str | None, variable: str) -> None:
        keys = _keys(os.environ.get(variable, "").split(","))
        if file:
            found = _keys(_text(file).splitlines())
            if not found:
                raise UserError(f"{file}: holds no key; give one a line, or leave the file out")
            keys += found
        self.digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def know(self, key: str) -> bool:
        """Whether this is one of the keys."""
        given = _digest(key)
        return any([hmac.compare_digest(given, digest) for digest in self.digests])


def _keys(lines: Iterable[str]) -> list[str]:
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def _text(file: str) -> str:
    try:
        return Path(file).read_text("utf-8-sig")
    except OSError as fault:
        raise UserError(f"{file}: cannot be read ({fault.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: cannot be read (not UTF-8)") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def key_of(request: Request) -> str:
    """The key that a request brings: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def check_key(request: Request, levels: Iterable[Keys]) -> None:
    """Refuse a request whose key none of the levels knows."""
    key = key_of(request)
    if not any([level.know(key) for level in levels]):
        metrics().rejected.inc(1, {"reason": "key"})
        message = "wrong API key" if key else "an API key is needed: Authorization: Bearer KEY"
        raise Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


class Admission:
    """So many requests in work at once, and no more; none any more once it is closed."""

    def __init__(self, most: int) -> None:
        self.most, self.count, self.closed = most, 0, False
        self.idle = asyncio.Event()
        self.idle.set()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        if self.closed:
            raise overloaded("stopping")
        if self.count >= self.most:
            raise overloaded("requests")
        self._set(self.count + 1)
        try:
            yield
        finally:
            self._set(self.count - 1)

    async def close(self) -> None:
        """Admit no more, and wait until those in work are done."""
        self.closed = True
        await self.idle.wait()

    def _set(self, count: int) -> None:
        self.count = count
        metrics().pending.set(count)
        if count:
            self.idle.clear()
        else:
            self.idle.set()


async def whole(request: Request, most: int) -> Request:
    """The request with its body read; refused when that is longer than `most` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_long(most)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_long(most)

    async def again() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, again)


def _too_long(most: int) -> Refusal:
    metrics().rejected.inc(1, {"reason": "size"})
    return Refusal(413, f"the body is longer than {most:,} bytes", "body")


class Counted:
    """ASGI middleware that counts answers by route and status, and hardens their headers.

    Also those to what fails unforeseen, of which a client learns nothing but a number: Starlette
    answers such requests outside of any middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                route = getattr(scope.get("route"), "path", "unknown")
                status = str(message["status"])
                metrics().requests.inc(1, {"endpoint": route, "status": status})
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception as fault:
            if begun:
                raise
            await _failed(fault)(scope, receive, counted)


def _failed(fault: Exception) -> JSONResponse:
    number = uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=fault)
    return error(500, f"internal error {number}; the service's log says more", None)
