"""One answer, from a checked request to its events: the model, the turn in the queue, the engine, the accounts.

Owns the life of a request between the protocols and the model: everything that can be refused is refused in `accept`,
before a byte is sent; `Ticket.events` then waits for its turn, generates, and frees all it holds however it ends. The
event loop only ever waits for tokens here; rendering and loading happen on other threads. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from freehold.prepared import Prepared, RawRequest
from freehold.reply import Stream
from freehold.server.errors import ApiError
from freehold.server.metrics import Metrics
from freehold.server.pool import Lease, ModelPool
from freehold.server.turns import Turns
from freehold.text.answer import Event
from freehold.text.request import ChatRequest

MAX_ANSWERS = 16
"""Of one request (`n`)."""


@dataclass(frozen=True)
class ServiceLimits:
    """timeout: seconds a request may take in all, its wait in the queue included; None is no limit."""

    timeout: float | None = 3600.0


class Service:
    """What the protocols call. Belongs to one event loop."""

    def __init__(self, pool: ModelPool, metrics: Metrics, limits: ServiceLimits | None = None) -> None:
        self.pool = pool
        self.metrics = metrics
        self.limits = limits or ServiceLimits()
        self.turns = Turns()

    async def accept(self, model: str, request: ChatRequest | RawRequest) -> Ticket:
        """Find or load the model, render the request, take a place in the queue.

        Raises ApiError (no such model, no place in the queue) and what LocalModel.prepare raises.
        """
        lease = await self.pool.lease(model)
        try:
            if isinstance(request, ChatRequest):
                request = dataclasses.replace(
                    request, messages=self.turns.recall(lease.name, request.namespace, request.messages)
                )
                prepared = await asyncio.to_thread(lease.model.prepare, request)
            else:
                prepared = await asyncio.to_thread(lease.model.prepare_raw, request)
            lease.queue.check()
            return Ticket(self, lease, request, prepared)
        except BaseException:
            lease.release()
            raise


class Ticket:
    """A request that was accepted. Read `events` once, or `close`; both free what it holds."""

    def __init__(self, service: Service, lease: Lease, request: ChatRequest | RawRequest, prepared: Prepared) -> None:
        self.model = lease.name
        self.created = int(time.time())
        self.request = request
        self.n_prompt = prepared.n_prompt
        self._service = service
        self._lease = lease
        self._prepared = prepared
        self._streams: list[Stream] = []
        self._expired = False
        self._started_at = time.perf_counter()

    def close(self) -> None:
        """End the answers that run, within one step, and give the model back. A second time does nothing."""
        for stream in self._streams:
            stream.close()
        self._lease.release()

    def call_id(self, answer: int, index: int) -> str:
        """The id of call `index` of an answer."""
        return self._streams[answer].call_id(index)

    async def events(self, n: int = 1) -> AsyncGenerator[tuple[int, Event], None]:
        """(number of the answer, event) of `n` answers at once, as they come; each ends with its "finish".

        Raises ApiError 504 when the time limit of a request is over, 429 when the queue is full, EngineError.
        """
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        timer = None
        if self._service.limits.timeout is not None:
            timer = loop.call_later(self._service.limits.timeout, self._expire, wake)
        try:
            async with self._lease.queue.turn(self.request.namespace):
                # Tokens come from the engine's thread; one wake-up serves all answers of the request.
                on_ready = partial(_wake, loop, wake.set)
                for index in range(n):
                    self._streams.append(self._prepared.start(index=index, on_ready=on_ready))
                async for item in self._merged(wake):
                    yield item
        finally:
            if timer is not None:
                timer.cancel()
            self.close()

    async def _merged(self, wake: asyncio.Event) -> AsyncGenerator[tuple[int, Event], None]:
        running = dict(enumerate(self._streams))
        while running:
            await wake.wait()
            wake.clear()
            if self._expired:
                raise ApiError(504, f"the request took longer than {self._service.limits.timeout:g} seconds")
            for number, stream in tuple(running.items()):
                for event in stream.poll():
                    if event.kind == "finish":
                        del running[number]
                        self._account(stream, event)
                    yield number, event

    def _expire(self, wake: asyncio.Event) -> None:
        self._expired = True
        wake.set()

    def _account(self, stream: Stream, finish: Event) -> None:
        reply = stream.reply()
        self._service.metrics.answered(self.model, reply, time.perf_counter() - self._started_at)
        if isinstance(self.request, ChatRequest) and finish.finish_reason in ("stop", "tool_calls"):
            self._service.turns.keep(self.model, self.request.namespace, self.request.messages, reply)


async def whole(ticket: Ticket, n: int = 1) -> list[list[Event]]:
    """The events of each answer, read to the end: the answers that are not streamed."""
    answers: list[list[Event]] = [[] for _ in range(n)]
    async for number, event in ticket.events(n):
        answers[number].append(event)
    return answers


def _wake(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop was closed while the engine still had something to say
        loop.call_soon_threadsafe(wake)


def joined(events: Sequence[Event], kind: str) -> str:
    """The text of all events of one kind."""
    return "".join(event.text for event in events if event.kind == kind)
