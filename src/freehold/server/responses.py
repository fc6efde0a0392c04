"""OpenAI's Responses API: POST /v1/responses, and the stored responses behind it, as the openai SDK and Codex use it.

Owns the endpoints and the order of their work. Bodies are read in `responses_request`, items in `responses_input`,
tools in `responses_tools`; answers are written in `responses_events` and kept in `responses_store`. Knows no tokens.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial

from pydantic import TypeAdapter

from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError, error_body
from freehold.server.responses_events import Answer, Sent
from freehold.server.responses_items import AnyItem, InputItem
from freehold.server.responses_request import Asked, ResponsesBody, find_items, not_found, read_request
from freehold.server.responses_store import ResponseStore, StoredItem, StoredResponse
from freehold.server.service import Ticket, whole
from freehold.server.sse import EventStream, framed

MAX_PAGE, DEFAULT_PAGE = 100, 20
"""Items of one page of a list."""

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)

_ITEM: TypeAdapter[AnyItem] = TypeAdapter(InputItem)


class ResponsesApi:
    """The handlers, around the store of responses."""

    def __init__(self, store: ResponseStore | None = None) -> None:
        self.store = ResponseStore() if store is None else store

    async def create(self, call: Call) -> Json | EventStream:
        """Answer a conversation, and keep the answer."""
        items = find_items(call.body, self.store, call.namespace)
        asked = await asyncio.to_thread(read_request, call.body, items, call.namespace, call.warnings)
        ticket = await call.accept(asked.body.model, asked.request)
        answer = Answer(asked.head(ticket), asked.offer, lambda index: ticket.call_id(0, index))
        if asked.body.stream:
            return EventStream(self._pieces(ticket, answer, asked), failure=partial(_failure, answer, call))
        for event in (await whole(ticket))[0]:
            for _ in answer.take(event):
                pass
        self._keep(answer, asked)
        if answer.ran_out:
            call.warnings.append("max_output_tokens ran out before the answer began; raise it, or ask for less effort")
        return Json(answer.response)

    async def retrieve(self, call: Call) -> Json:
        """A stored response."""
        if call.query.get("stream", "false").lower() not in ("false", "0", ""):
            raise ApiError(400, "a stored response cannot be streamed again; leave out `stream`", param="stream")
        return Json(self._stored(call).response)

    async def delete(self, call: Call) -> Json:
        """Forget a stored response."""
        self._stored(call)
        self.store.delete(call.namespace, call.path["response_id"])
        return Json({"id": call.path["response_id"], "object": "response", "deleted": True})

    async def cancel(self, call: Call) -> Json:
        """Refused: what is stored has ended."""
        self._stored(call)
        raise ApiError(400, "only background responses can be cancelled, which this server has not; close the stream")

    async def input_items(self, call: Call) -> Json:
        """The conversation that a stored response answered, a page at a time."""
        items = [item.shown for item in self._stored(call).input]
        if _query_choice(call, "order", ("desc", "asc")) == "desc":
            items.reverse()
        limit = _limit(call)
        if (after := call.query.get("after")) is not None:
            start = next((i + 1 for i, item in enumerate(items) if item["id"] == after), None)
            if start is None:
                raise ApiError(404, f"no input item {after[:80]!r} in this response", param="after")
            items = items[start:]
        page = items[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return Json({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)})

    def _stored(self, call: Call) -> StoredResponse:
        id = call.path["response_id"]
        stored = self.store.get(call.namespace, id)
        if stored is None:
            raise ApiError(404, not_found("Response", id, self.store), param="response_id")
        return stored

    async def _pieces(self, ticket: Ticket, answer: Answer, asked: Asked) -> AsyncGenerator[bytes, None]:
        yield _sent(answer.begin())
        async with aclosing(ticket.events()) as events:
            async for _, event in events:
                piece = _sent(answer.take(event))
                if event.kind == "finish":
                    self._keep(answer, asked)  # before the client learns of it, and goes on from it
                yield piece

    def _keep(self, answer: Answer, asked: Asked) -> None:
        if asked.stores:
            output = [StoredItem.of(_ITEM.validate_python(item), item) for item in answer.response["output"]]
            self.store.put(asked.request.namespace, StoredResponse(answer.response, asked.conversation, output))


def _sent(events: Iterable[Sent]) -> bytes:
    return b"".join(framed(event, event["type"]) for event in events)


def _failure(answer: Answer, call: Call, error: ApiError) -> bytes:
    message = error_body(error, "openai", call.request_id)["error"]["message"]
    return _sent([answer.fail(error, message)])


def _query_choice(call: Call, name: str, choices: tuple[str, ...]) -> str:
    """A query parameter that is one of `choices`; the first is the default."""
    value = call.query.get(name, choices[0])
    if value not in choices:
        raise ApiError(400, f"{name} is {value[:40]!r}; expected {' or '.join(choices)}", param=name)
    return value


def _limit(call: Call) -> int:
    """How many items a page is to have."""
    value = call.query.get("limit", str(DEFAULT_PAGE))
    if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= MAX_PAGE:
        raise ApiError(400, f"limit is {value[:40]!r}; expected 1 to {MAX_PAGE}", param="limit")
    return int(value)


def endpoints(store: ResponseStore | None = None) -> tuple[Endpoint, ...]:
    """The endpoints of one server, around one store."""
    api, one, tag = ResponsesApi(store), "/v1/responses/{response_id}", "OpenAI"
    return (
        Endpoint(
            "POST",
            "/v1/responses",
            api.create,
            "Answer a conversation, and keep it",
            tag,
            body=ResponsesBody,
            answers=("application/json", "text/event-stream"),
            statuses=(404, 429, 503, 504),
        ),
        Endpoint("GET", one, api.retrieve, "A stored response", tag, statuses=(404,)),
        Endpoint("DELETE", one, api.delete, "Forget a stored response", tag, statuses=(404,)),
        Endpoint("GET", f"{one}/input_items", api.input_items, "What a response answered", tag, statuses=(404,)),
        Endpoint("POST", f"{one}/cancel", api.cancel, "Refused: nothing runs in the background", tag, statuses=(404,)),
    )


ENDPOINTS = endpoints()
