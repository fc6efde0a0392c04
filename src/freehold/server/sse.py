"""Answers that come in pieces: headers at once, pieces as they are made, a sign of life while there are none.

Owns the sending of a streamed response and what must happen around it: the keep-alive timer, and the end of the work
when the client has gone. Server-sent events and lines of JSON differ only in framing. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from freehold.server.errors import ApiError, as_api_error

KEEP_ALIVE_SECONDS = 10.0
COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def framed(data: Any, name: str | None = None) -> bytes:
    """One server-sent event with JSON data."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dumps(data) + b"\n\n"


class HasMore(Protocol):
    """What says whether another event follows without waiting."""

    @property
    def has_more(self) -> bool: ...


class EventStream:
    """An ASGI response made of the byte pieces of `pieces`, which is closed when the client goes away.

    failure renders what is said to the client when `pieces` raises, which by then can only be said within the stream;
    the error is raised again, for the log. keep_alive is sent whenever nothing else was for `interval` seconds; None
    sends nothing.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        failure: Callable[[ApiError], bytes],
        *,
        media_type: str = "text/event-stream; charset=utf-8",
        keep_alive: bytes | None = COMMENT,
        interval: float = KEEP_ALIVE_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._pieces = pieces
        self._failure = failure
        self._keep_alive = keep_alive
        self._interval = interval
        self.status_code = 200
        # Proxies that buffer would undo the streaming.
        self.headers = {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            **(headers or {}),
        }
        self.tickets: Sequence[HasMore] = ()  # whose events the pieces are made of
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status_code, "headers": head})
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        tasks = [loop.create_task(self._write(send)), loop.create_task(disconnected(receive))]
        if self._keep_alive is not None:
            tasks.append(loop.create_task(self._stay_alive(send, self._keep_alive)))
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._pieces.aclose()
        if isinstance(results[0], Exception):
            raise results[0]

    async def _write(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        held = b""  # pieces that are followed by others at once: they are sent together
        try:
            async for piece in self._pieces:
                held += piece
                if not any(ticket.has_more for ticket in self.tickets):
                    await send({"type": "http.response.body", "body": held, "more_body": True})
                    held, self._sent_at = b"", loop.time()
        except Exception as error:
            held += self._failure(as_api_error(error))
            raise
        finally:
            await send({"type": "http.response.body", "body": held, "more_body": False})

    async def _stay_alive(self, send: Send, comment: bytes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            idle = loop.time() - self._sent_at
            if idle >= self._interval:
                await send({"type": "http.response.body", "body": comment, "more_body": True})
                self._sent_at, idle = loop.time(), 0.0
            await asyncio.sleep(self._interval - idle)


async def disconnected(receive: Receive) -> None:
    """Returns once the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
