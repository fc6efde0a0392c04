"""A connection that cannot be used to hold the server up: uvicorn's, with limits of time, size and number.

Owns what happens before a request is one and after an answer is written: heads that are too long or never end, readers
that do not read, more connections than the process has descriptors for. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import re
from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_CONNECTIONS = 800
"""Open at once; systems commonly allow 1024 descriptors to a process."""

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
"""From the first byte of a request, or the opening of the connection, to the end of its headers."""

STALL_SECONDS = 60.0
"""How long a client may leave an answer unread before it counts as gone."""

_UPGRADE = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """One client's connection."""

    _head_timer: TimerHandle | None = None
    _head_bytes = 0  # that came while the head was incomplete
    _in_head = 0  # of target and headers
    _stall_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, b"too many connections; try again later")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # a refused client that goes on sending
        super().data_received(self._without_upgrade(data) if self._head_timer is not None else data)
        if self._head_timer is not None:
            self._count_head(len(data))

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._in_head = len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._in_head += len(name) + len(value)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        if self._in_head > MAX_HEAD_BYTES:  # all of it came at once
            self._refuse(431, b"the request's headers are too long")
            return
        self._head_done()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                HEAD_SECONDS, self._refuse, 408, b"the request did not arrive in time"
            )

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer, self._head_bytes = None, 0

    def _stop_timers(self) -> None:
        self._head_done()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _count_head(self, n_bytes: int) -> None:
        self._head_bytes += n_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, b"the request's headers are too long")

    @staticmethod
    def _without_upgrade(data: bytes) -> bytes:
        """The start of a request without its offer to speak another protocol, which the parser would stop for: the body
        that follows would be lost. Java's client offers HTTP/2 with every first request.
        """
        head, end, rest = data.partition(b"\r\n\r\n")
        return _UPGRADE.sub(b"\r\nX-Not-Upgraded:", head) + end + rest

    def _refuse(self, status: int, text: bytes) -> None:
        """Answer without the application, and hang up."""
        self._stop_timers()
        head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
        self.transport.write(STATUS_LINE[status] + head + text)
        self.transport.close()
