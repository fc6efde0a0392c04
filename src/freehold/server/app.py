"""The ASGI application: routes, and what happens around every handler.

Owns the way of a request through guard, body, handler and response, and the headers that answers have in common; errors
become the protocol's own here, whoever raised them. Knows protocols only as a list of endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from freehold.server.body import ClientGone, parse, read_bytes, too_large
from freehold.server.endpoint import Call, Endpoint, error_answer
from freehold.server.errors import ApiError, as_api_error
from freehold.server.guard import Guard, GuardRules, new_request_id
from freehold.server.service import Service, timed_out
from freehold.server.sse import EventStream, disconnected

log = logging.getLogger("freehold.server")

_HANDLED_APART = 64 * 1024  # bytes of a body from which on it is read on another thread
_LOGGED = 100_000  # characters of a body in the log


@dataclass(frozen=True)
class AppOptions:
    """max_body: bytes of a request. body_seconds: how long it may take to arrive. log_bodies: write requests to the
    log, with all that people said in them.
    """

    max_body: int = 32 * 2**20
    body_seconds: float = 60.0
    log_bodies: bool = False
    guard: GuardRules = field(default_factory=GuardRules)


def create_app(service: Service, endpoints: Iterable[Endpoint], options: AppOptions | None = None) -> Starlette:
    """The application that serves `endpoints`; it closes the service's models when it ends."""
    chosen, served = options or AppOptions(), tuple(endpoints)
    routes = [
        Route(endpoint.path, _Handling(service, endpoint, chosen), methods=[endpoint.method]) for endpoint in served
    ]
    public = chosen.guard.public | {endpoint.path for endpoint in served if endpoint.public}
    guard = Middleware(Guard, replace(chosen.guard, public=public), service.metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.end()
            await service.pool.close()

    app = Starlette(routes=routes, middleware=[guard], lifespan=lifespan)
    app.router.redirect_slashes = False  # to an address that this server cannot know behind a proxy
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_route)
    return app


class _Handling:
    """One endpoint as an ASGI application: read, check, handle, send; the work ends when the client goes away."""

    def __init__(self, service: Service, endpoint: Endpoint, options: AppOptions) -> None:
        self._service = service
        self._endpoint = endpoint
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["freehold.endpoint"] = self._endpoint.path
        call = Call(
            service=self._service,
            path=scope.get("path_params", {}),
            query=Request(scope).query_params,
            headers=Headers(scope=scope),
            body=None,
            namespace=scope.get("freehold.namespace", ""),
            request_id=scope.get("freehold.request_id") or new_request_id(),
        )
        sent = False

        async def sending(message: Message) -> None:
            nonlocal sent
            sent = sent or message["type"] == "http.response.start"
            await send(message)

        try:
            response = await self._handled(call, receive)
            if response is not None:
                await response(scope, receive, sending)
        except ClientGone:
            pass  # the guard counts it as that
        except Exception as error:
            answer = self._failed(error, scope["path"], call.request_id)
            if not sent:  # otherwise the protocol file has said it within its stream
                await answer(scope, receive, send)
        finally:
            for ticket in call.tickets:
                ticket.close()

    async def _handled(self, call: Call, receive: Receive) -> Response | EventStream | None:
        """The handler's response; None if the client left before there was one."""
        kind = self._endpoint.body
        if kind is not None:
            raw = await self._read(call.headers, receive, call.request_id)
            apart = len(raw) > _HANDLED_APART
            call.body = await asyncio.to_thread(parse, raw, kind) if apart else parse(raw, kind)
        seconds = self._service.limits.timeout
        response = await _unless_gone(self._endpoint.handle(call), receive, watch=kind is not None, seconds=seconds)
        if isinstance(response, EventStream):
            response.tickets = call.tickets
        if response is not None:
            response.headers["x-request-id"] = call.request_id
            if effort := next((ticket.effort for ticket in call.tickets if ticket.effort), None):
                response.headers["x-freehold-reasoning-effort"] = effort
            if kind is not None and call.body.ignored:
                response.headers["x-freehold-ignored"] = _header(call.body.ignored)
            if call.warnings:
                response.headers["x-freehold-warning"] = _header(call.warnings)
        return response

    async def _read(self, headers: Mapping[str, str], receive: Receive, request_id: str) -> bytes:
        if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
            raise ApiError(415, f"the request has the Content-Encoding {coding[:40]!r}; send it without one")
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:18]) > self._options.max_body:
            raise too_large(self._options.max_body)
        seconds = self._options.body_seconds
        reading = asyncio.ensure_future(read_bytes(receive, self._options.max_body))
        try:
            await asyncio.wait([reading], timeout=seconds)
            if not reading.done():
                message = f"the request's body took longer than {seconds:g} seconds to arrive; send it faster, or less"
                raise ApiError(408, message, headers={"connection": "close"})
            raw = reading.result()
        finally:
            reading.cancel()
        if self._options.log_bodies:
            log.info("request %s asks: %s", request_id, ascii(raw[:_LOGGED].decode("utf-8", "replace")))
        return raw

    def _failed(self, error: Exception, path: str, request_id: str) -> Response:
        answer = as_api_error(error)
        self._service.metrics.failed(self._endpoint.path, answer.status)
        if isinstance(error, ApiError) and answer.status >= 500:
            log.warning("request %s: %d %s", request_id, answer.status, answer.message)
        elif answer.status >= 500:
            log.error("request %s failed: %s", request_id, error, exc_info=error)
        return error_answer(answer, path, request_id)


async def _unless_gone(
    handling: Awaitable[Response | EventStream], receive: Receive, *, watch: bool, seconds: float | None
) -> Response | EventStream | None:
    """What `handling` returns; it is cancelled, and None returned, when the client goes away before.

    Raises ApiError 504 after `seconds`.
    """
    work = asyncio.ensure_future(handling)
    tasks = [work, asyncio.ensure_future(disconnected(receive))] if watch else [work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            assert seconds is not None  # or it would wait for ever
            raise timed_out(seconds)
        return work.result() if work.done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    path = request.url.path
    if status == 405:
        answer = ApiError(405, f"{path} does not take {request.method}; see /docs for what there is")
    else:
        answer = ApiError(404, f"there is nothing at {path}; see /docs for what there is")
    answer.headers |= getattr(error, "headers", None) or {}
    return error_answer(answer, path, request.scope.get("freehold.request_id") or new_request_id())


def _header(words: Sequence[str]) -> str:
    """Words as a header's value: one line, printable, not too long."""
    text = "; ".join(words)[:1000]
    return "".join(char if " " <= char <= "~" else "?" for char in text)
