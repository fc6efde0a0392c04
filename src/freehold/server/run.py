"""The server as a process: its sockets, its start, and how it ends.

Owns signals, exit statuses and the order of a shutdown: no new requests, a time of grace for those that run, an error
to those that are left. Runs uvicorn; knows neither models nor protocols.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from freehold.errors import FreeholdError, RequestError, ResourceError
from freehold.server.connection import Connection
from freehold.server.errors import ApiError
from freehold.server.service import Service

IDLE_CONNECTION_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs, so that none is closed as it is used."""

_BACKLOG = 1024
_LAST_WORDS_SECONDS = 0.3  # for error events to reach their clients when the server must end at once
_CLEAN_UP_SECONDS = 5  # for requests that were ended to unwind


class Server(uvicorn.Server):
    """Runs an application until a signal. The first one ends it with grace, the second at once.

    preload: models to load before requests are accepted. ready is called when they are. status is the exit status:
    0 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        grace: float = 30.0,
        preload: Sequence[str] = (),
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=IDLE_CONNECTION_SECONDS,
                timeout_graceful_shutdown=math.ceil(grace) + _CLEAN_UP_SECONDS,
            )
        )
        self.status = 0
        self.last_resort: threading.Timer | None = None  # ends what does not end by itself
        self.service = service
        self._grace = grace
        self._preload = preload
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await self._load_first()
        if self.should_exit:
            await self.service.pool.close()
            return
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.drain()
        timer = asyncio.get_running_loop().call_later(self._grace, self.service.end)
        await super().shutdown(sockets)
        timer.cancel()
        if self.last_resort is not None:
            self.last_resort.start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal, in the main thread."""
        again, self.should_exit = self.should_exit, True
        self.status = 130 if sig == signal.SIGINT else 0
        if again and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_at_once, 128 + sig)

    def _end_at_once(self, status: int) -> None:
        self.service.end()
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, status)

    async def _load_first(self) -> None:
        """Load the models that are to be there from the start. Raises ResourceError where one cannot be loaded."""
        for name in self._preload:
            loading = asyncio.ensure_future(self.service.pool.lease(name))
            while not loading.done() and not self.should_exit:
                await asyncio.wait([loading], timeout=0.1)
            if self.should_exit:
                loading.cancel()
                return
            try:
                loading.result().release()
            except ApiError as error:
                await self.service.pool.close()
                raise ResourceError(error.message) from None


def run(server: Server, sockets: list[socket.socket]) -> int:
    """Run to the end; the exit status."""
    # What cannot be stopped, such as the compiling of a grammar, is not waited for.
    server.last_resort = threading.Timer(_CLEAN_UP_SECONDS, lambda: os._exit(server.status))
    server.last_resort.daemon = True
    server.run(sockets)
    server.last_resort.cancel()
    if server.service.pool.residents:  # an engine hangs in a step, and the interpreter would wait for its thread
        sys.stderr.flush()
        os._exit(server.status)
    return server.status


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of `host`, all with the same port; 0 takes a free one.

    Raises ResourceError naming a port that is taken, RequestError for a host that is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RequestError(
            f"--host {host!r} cannot be looked up: {error}; expected an address of this machine"
        ) from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(_bound(family, (address[0], port, *address[2:])))
            port = port or sockets[0].getsockname()[1]
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise _bind_error(error, host, port) from None
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _bind_error(error: OSError, host: str, port: int) -> FreeholdError:
    if error.errno == errno.EADDRINUSE:
        return ResourceError(f"port {port} on {host} is in use, by another server perhaps; --port takes another one")
    if error.errno == errno.EACCES:
        return ResourceError(f"port {port} may not be used by this user; --port takes another one, above 1023")
    return RequestError(f"cannot listen on {host} port {port}: {error.strerror}; expected an address of this machine")
