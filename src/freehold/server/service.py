"""One answer, from a checked request to its events: the model, the turn in the queue, the engine, the accounts.

Owns the life of a request between the protocols and the model: everything that can be refused is refused in `accept`,
before a byte is sent; `Ticket.events` then waits for its turn, generates, and frees all it holds however it ends. The
event loop only ever waits for tokens here; rendering and loading happen on other threads. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from freehold.prepared import Prepared, RawRequest
from freehold.reply import Stream
from freehold.server.bell import Bell
from freehold.server.errors import ApiError
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool, shutting_down
from freehold.server.queue import Place
from freehold.server.resident import Lease
from freehold.server.turns import Turns
from freehold.text.answer import Event
from freehold.text.request import ChatRequest

MAX_ANSWERS = 16
"""Of one request (`n`)."""


@dataclass(frozen=True)
class ServiceLimits:
    """timeout: seconds a request may take in all, its wait in the queue included; None is no limit. enforce: whether
    calls of tools are bound to their declarations, as ChatRequest.enforce. effort: what a request that asks for no
    reasoning effort gets; None leaves it to the model's format.
    """

    timeout: float | None = 3600.0
    enforce: bool = True
    effort: str | None = None


class Service:
    """What the protocols call. Belongs to one event loop."""

    def __init__(self, pool: ModelPool, metrics: Metrics, limits: ServiceLimits | None = None) -> None:
        self.pool = pool
        self.metrics = metrics
        self.limits = limits or ServiceLimits()
        self.turns = Turns()
        self.tickets: set[Ticket] = set()  # accepted and not closed
        self.draining = False  # no new requests
        self._ended = False
        metrics.watch(pool)

    async def accept(self, model: str, request: ChatRequest | RawRequest) -> Ticket:
        """Find or load the model, render the request, take a place in the queue.

        Raises ApiError (no such model, no place in the queue) and what LocalModel.prepare raises.
        """
        if self.draining:
            raise shutting_down()
        started_at = time.perf_counter()
        lease = await self.pool.lease(model)
        try:
            lease.queue.check()  # before the work of rendering
            request, prepared = await self._prepared(lease, request)
            if self._ended:
                raise shutting_down()
            return Ticket(self, lease, lease.queue.join(request.namespace), request, prepared, started_at)
        except BaseException:
            lease.release()
            raise

    async def count(self, model: str, request: ChatRequest) -> int:
        """The length in tokens of the prompt that a request is. Takes no place in the queue. Raises as `accept`."""
        lease = await self.pool.lease(model)
        try:
            return (await self._prepared(lease, request))[1].n_prompt
        finally:
            lease.release()

    async def _prepared(
        self, lease: Lease, request: ChatRequest | RawRequest
    ) -> tuple[ChatRequest | RawRequest, Prepared]:
        """The request as this server serves it, and what the model makes of it."""
        if isinstance(request, RawRequest):
            return request, await asyncio.to_thread(lease.model.prepare_raw, request)
        served = dataclasses.replace(
            request,
            messages=self.turns.recall(lease.name, request.namespace, request.messages),
            enforce=request.enforce and self.limits.enforce,
            default_effort=request.default_effort or self.limits.effort,
        )
        return served, await asyncio.to_thread(lease.model.prepare, served)

    def drain(self) -> None:
        """Refuse new requests; those that were accepted go on."""
        self.draining = True

    def end(self) -> None:
        """End the requests that are left; their clients are told."""
        self.draining = self._ended = True
        self.pool.end_loads()
        for ticket in [*self.tickets]:
            ticket.fail(shutting_down())


class Ticket:
    """A request that was accepted. Read `events` once, or `close`; both free what it holds."""

    def __init__(
        self,
        service: Service,
        lease: Lease,
        place: Place,
        request: ChatRequest | RawRequest,
        prepared: Prepared,
        started_at: float,
    ) -> None:
        self.model = lease.name
        self.created = int(time.time())
        self.request = request
        self.n_prompt = prepared.n_prompt
        self.effort = prepared.effort
        self.unenforced = prepared.unenforced
        self._service = service
        self._lease = lease
        self._place = place
        self._prepared = prepared
        self._streams: list[Stream] = []
        self._failure: ApiError | None = None
        self._bell = Bell()
        self.has_more = False  # events that can be read without waiting
        self._started_at = started_at
        self._timer: asyncio.TimerHandle | None = None
        seconds = service.limits.timeout
        if seconds is not None:
            left = seconds - (time.perf_counter() - started_at)
            self._timer = asyncio.get_running_loop().call_later(left, self.fail, timed_out(seconds))
        service.tickets.add(self)

    def close(self) -> None:
        """End the answers that run, within one step, and give place and model back. A second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._streams:
            stream.close()
        self._place.leave(self._failure)
        self._lease.release()
        self._service.tickets.discard(self)

    def fail(self, error: ApiError) -> None:
        """Close it because of `error`, which whoever reads the events gets."""
        self._failure = self._failure or error
        self._bell.ring(now=True)
        self.close()

    def call_id(self, answer: int, index: int) -> str:
        """The id of call `index` of an answer."""
        return self._streams[answer].call_id(index)

    async def events(self, n: int = 1) -> AsyncGenerator[tuple[int, Event], None]:
        """(number of the answer, event) of `n` answers at once, as they come; each ends with its "finish".

        Raises ApiError 504 when the time limit of a request is over, 503 when the server ends, EngineError.
        """
        try:
            await self._place.turn()
            self._check()
            for index in range(n):
                self._streams.append(self._prepared.start(index=index, on_ready=partial(self._ring, index)))
            async for item in self._merged():
                yield item
        finally:
            self.close()

    async def _merged(self) -> AsyncGenerator[tuple[int, Event], None]:
        running = dict(enumerate(self._streams))
        waiting_for_first = True
        while running:
            await self._bell.wait()
            self._check()
            news = [(number, event) for number, stream in running.items() for event in stream.poll()]
            if news and waiting_for_first:
                waiting_for_first = False
                self._service.metrics.first_token(self.model, time.perf_counter() - self._started_at)
            for at, (number, event) in enumerate(news, 1):
                if event.kind == "finish":
                    self._account(running.pop(number), event)
                self.has_more = at < len(news)
                yield number, event
                self._check()  # the reader may have taken its time

    def _ring(self, index: int) -> None:
        """On the engine's thread: answer `index` has something new. Its end is not kept back."""
        self._bell.ring(now=index < len(self._streams) and self._streams[index].has_ended)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _account(self, stream: Stream, finish: Event) -> None:
        reply = stream.reply()
        self._service.metrics.answered(self.model, reply)
        # What a stop string cut off was sampled, but never said.
        is_whole = finish.finish_reason in ("stop", "tool_calls") and finish.stop is None
        if isinstance(self.request, ChatRequest) and is_whole:
            self._service.turns.keep(self.model, self.request.namespace, self.request.messages, reply)


async def whole(ticket: Ticket, n: int = 1) -> list[list[Event]]:
    """The events of each answer, read to the end: the answers that are not streamed."""
    answers: list[list[Event]] = [[] for _ in range(n)]
    async for number, event in ticket.events(n):
        answers[number].append(event)
    return answers


def finish_reason(finish: Event) -> Literal["stop", "length", "tool_calls"]:
    """Why an answer ended. Raises ApiError 503 for one that the server broke off."""
    reason = finish.finish_reason
    if reason == "stop" or reason == "length" or reason == "tool_calls":
        return reason
    raise ApiError(503, "the answer was broken off: the server or the model is being shut down; try again")


def timed_out(seconds: float) -> ApiError:
    """The answer to a request that took longer than it may."""
    return ApiError(504, f"the request took longer than {seconds:g} seconds", code="timeout")
