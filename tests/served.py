"""A server on loopback for tests: any models behind real HTTP, in this process, on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import uvicorn

from freehold.runtime import LocalModel
from freehold.server.app import create_app
from freehold.server.endpoint import Endpoint
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.service import Service


@contextmanager
def served(models: Mapping[str, LocalModel], endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """Serve the endpoints; gives the base URL. The models are closed at the end."""
    app = create_app(Service(ModelPool(models), Metrics()), endpoints)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def started(sockets: object = None) -> None:
        await startup()
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, name="test-server", daemon=True)
    thread.start()
    try:
        assert ready.wait(20), "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
