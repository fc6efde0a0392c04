"""How a server ends: signals to a process of its own, and what its clients see."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fake_loader import FakeLoader
from freehold.errors import RequestError, ResourceError
from freehold.prepared import RawRequest
from freehold.server.app import create_app
from freehold.server.errors import ApiError
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.queue import QueueLimits
from freehold.server.run import Server, bind, run
from freehold.server.service import Service, whole
from plain_protocol import ENDPOINTS
from scripted_model import scripted

PROGRAM = """
import sys, time
sys.path[:0] = [sys.argv[1]]
import freehold.server.pool
from freehold.server.app import create_app
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.queue import QueueLimits
from freehold.server.run import Server, bind, run
from freehold.server.service import Service, whole
from plain_protocol import ENDPOINTS
from scripted_model import scripted

port, grace, seconds, close_seconds = int(sys.argv[2]), *map(float, sys.argv[3:])
freehold.server.pool.CLOSE_SECONDS = close_seconds
model = scripted("a" * 20)
forward = model.script.forward
model.script.forward = lambda batch, kv: (time.sleep(seconds), forward(batch, kv))[1]
service = Service(ModelPool({"it": model}), Metrics())
sockets = bind("127.0.0.1", port)
ready = lambda: print(sockets[0].getsockname()[1], flush=True)
sys.exit(run(Server(create_app(service, ENDPOINTS), service, grace=grace, ready=ready), sockets))
"""

Running = tuple[subprocess.Popen[str], str]


@contextmanager
def process(port: int = 0, grace: float = 10, seconds: float = 0.02, close_seconds: float = 30) -> Iterator[Running]:
    """A server whose steps take `seconds`; it and its URL."""
    arguments = [str(Path(__file__).parents[1]), *map(str, (port, grace, seconds, close_seconds))]
    server = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        yield server, f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.communicate()


class Reader(threading.Thread):
    """A client in the middle of a streamed answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.began = threading.Event()
        self.text = ""
        self.error: Exception | None = None
        self.start()
        assert self.began.wait(20)

    def run(self) -> None:
        body = {"model": "it", "prompt": "?", "stream": True}
        try:
            with httpx.stream("POST", f"{self._url}/answer", json=body, timeout=30) as answer:
                for line in answer.iter_lines():
                    self.text += line
                    self.began.set()
        except httpx.HTTPError as error:
            self.error = error


def test_running_requests_finish() -> None:
    with process() as (server, url):
        reader = Reader(url)
        server.send_signal(signal.SIGINT)
        time.sleep(0.25)
        with pytest.raises(httpx.HTTPError):  # nobody else gets in
            httpx.post(f"{url}/answer", json={"model": "it", "prompt": "?"}, timeout=5)
        reader.join(20)
        assert reader.error is None
        assert reader.text.count('"kind":"text"') == 20
        assert '"kind":"finish"' in reader.text
        assert server.wait(20) == 130


def test_after_the_time_of_grace_clients_are_told() -> None:
    with process(grace=0.3, seconds=0.2) as (server, url):
        reader = Reader(url)
        server.send_signal(signal.SIGTERM)
        reader.join(20)
        assert reader.error is None
        assert "the server is shutting down" in reader.text
        assert '"kind":"finish"' not in reader.text
        assert server.wait(20) == 0


def test_the_second_signal_ends_it_at_once() -> None:
    with process(grace=60, seconds=3) as (server, url):
        body = {"model": "it", "prompt": "?"}
        asking = threading.Thread(target=lambda: httpx.post(f"{url}/answer", json=body, timeout=30), daemon=True)
        asking.start()
        time.sleep(0.3)
        start = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 143
        assert time.perf_counter() - start < 2.5  # less than the step under way
        asking.join(5)


def test_an_engine_that_hangs_does_not_keep_the_process() -> None:
    with process(grace=0, seconds=20, close_seconds=0.3) as (server, url):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/answer", json={"model": "it", "prompt": "?"}, timeout=0.3)
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def test_killed_and_started_again() -> None:
    with process() as (server, url):
        port = int(url.rpartition(":")[2])
        reader = Reader(url)
        server.kill()
        reader.join(20)
        assert reader.error is not None
    with process(port, seconds=0) as (_, again):
        assert again == url
        assert httpx.post(f"{url}/answer", json={"model": "it", "prompt": "?"}).json() == {"answers": ["a" * 20]}


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "x" * 300, ""])
def test_hosts_that_are_not_ours(host: str) -> None:
    with pytest.raises(RequestError, match="expected an address"):
        bind(host, 0)


def test_a_name_with_two_addresses_has_one_port() -> None:
    sockets = bind("localhost", 0)
    assert len({opened.getsockname()[1] for opened in sockets}) == 1
    for opened in sockets:
        opened.close()


def serve_in_thread(loader: FakeLoader, *preload: str) -> tuple[Server, threading.Thread, list[object]]:
    service = Service(ModelPool(loader=loader), Metrics())
    outcome: list[object] = []
    server = Server(create_app(service, ENDPOINTS), service, preload=preload, ready=lambda: outcome.append("ready"))

    def target() -> None:
        try:
            outcome.append(run(server, bind("127.0.0.1", 0)))
        except ResourceError as error:
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return server, thread, outcome


def test_models_are_loaded_before_the_first_request() -> None:
    loader = FakeLoader("one", "two")
    server, thread, outcome = serve_in_thread(loader, "one", "TWO")
    while not outcome:
        time.sleep(0.01)
    assert loader.loads == ["one", "two"]
    server.should_exit = True
    thread.join(20)
    assert outcome == ["ready", 0]


def test_a_model_that_cannot_be_loaded_keeps_it_from_starting() -> None:
    loader = FakeLoader("one")
    loader.error = ResourceError("one needs 9 GB")
    _, thread, outcome = serve_in_thread(loader, "one")
    thread.join(20)
    assert [str(item) for item in outcome] == ["one needs 9 GB"]


def test_a_signal_while_models_are_loaded_first() -> None:
    loader = FakeLoader("one")
    loader.gate = threading.Event()
    server, thread, outcome = serve_in_thread(loader, "one")
    while not loader.n_loading:
        time.sleep(0.01)
    server.handle_exit(signal.SIGINT, None)
    thread.join(20)
    assert outcome == [130]


def test_requests_that_wait_for_a_load_are_refused_at_the_end() -> None:
    async def scenario() -> None:
        loader = FakeLoader("one")
        loader.gate = threading.Event()
        service = Service(ModelPool(loader=loader), Metrics())

        waiting = asyncio.create_task(service.accept("one", RawRequest([65])))
        await asyncio.sleep(0.05)
        service.end()
        with pytest.raises(ApiError, match="shutting down"):
            await waiting
        with pytest.raises(ApiError, match="shutting down"):
            await service.accept("one", RawRequest([65]))
        await service.pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_requests_in_the_line_are_refused_at_the_end() -> None:
    async def scenario() -> None:

        service = Service(ModelPool({"it": scripted("Paris")}, queue=QueueLimits(max_running=1)), Metrics())
        first = await service.accept("it", RawRequest([65]))
        second = await service.accept("it", RawRequest([65]))
        reading = asyncio.create_task(whole(second))
        await asyncio.sleep(0.01)
        service.end()
        for ticket in (reading, asyncio.create_task(whole(first))):
            with pytest.raises(ApiError, match="shutting down"):
                await ticket
        await service.pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
