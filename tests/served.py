"""A server on loopback for tests: any models behind real HTTP, in this process, on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.types import ASGIApp

from freehold.runtime import LocalModel
from freehold.server.app import AppOptions, create_app
from freehold.server.endpoint import Endpoint
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.run import Server, bind
from freehold.server.service import Service, ServiceLimits


@contextmanager
def served(
    models: Mapping[str, LocalModel],
    endpoints: Sequence[Endpoint],
    *,
    options: AppOptions | None = None,
    limits: ServiceLimits | None = None,
) -> Iterator[str]:
    """Serve the endpoints; gives the base URL. The models are closed at the end."""
    service = Service(ModelPool(models), Metrics(), limits)
    with running(create_app(service, endpoints, options), service) as url:
        yield url


@contextmanager
def running(app: ASGIApp, service: Service, *, grace: float = 0.0) -> Iterator[str]:
    """Run an application; gives the base URL."""
    ready = threading.Event()
    server = Server(app, service, grace=grace, ready=ready.set)
    sockets = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=(sockets,), name="test-server", daemon=True)
    thread.start()
    try:
        assert ready.wait(20), "the server did not start"
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
