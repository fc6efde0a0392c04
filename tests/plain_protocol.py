"""The smallest protocol: POST /answer with a model, a prompt and whether to stream; for tests of what all share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Annotated

from pydantic import Field

from freehold.server.body import Body
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError, error_body
from freehold.server.health import ENDPOINTS as HEALTH
from freehold.server.service import Service, whole
from freehold.server.sse import EventStream, framed
from freehold.text.chat import Message
from freehold.text.request import ChatRequest


class Question(Body):
    model: str
    prompt: str
    stream: bool = False
    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_tokens: int | None = None


async def answer(call: Call) -> Json | EventStream:
    """{"answers": [text]}, or events {"index", "kind", "text"}."""
    body: Question = call.body
    messages = (Message("user", body.prompt),)
    ticket = await call.accept(body.model, ChatRequest(messages, max_tokens=body.max_tokens, namespace=call.namespace))
    if not body.stream:
        answers = await whole(ticket, body.n)
        return Json({"answers": ["".join(each.text for each in events if each.kind == "text") for events in answers]})

    async def pieces() -> AsyncGenerator[bytes, None]:
        async for index, piece in ticket.events(body.n):
            yield framed({"index": index, "kind": piece.kind, "text": piece.text})

    def failure(error: ApiError) -> bytes:
        return framed(error_body(error, "openai", call.request_id))

    return EventStream(pieces(), failure)


ENDPOINTS = (Endpoint("POST", "/answer", answer, "Answer", "Test", Question), *HEALTH)


def n_uses(service: Service) -> tuple[int, int, int, int]:
    """What requests hold: tickets, leases, places inside and in line. All zero when nothing is going on."""
    residents = service.pool.residents
    running, waiting = sum(r.queue.n_running for r in residents), sum(r.queue.n_waiting for r in residents)
    return len(service.tickets), sum(r.n_leases for r in residents), running, waiting


IDLE = (0, 0, 0, 0)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for `condition`."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not come about"
        await asyncio.sleep(0.002)
