"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens, for the anthropic SDK and Claude Code.

Owns the endpoints and the manners of the clients: what their headers mean, the words of a prompt that is too long, the
line that must not reach the prompt. Requests are read in `anthropic_request`, answers written in `anthropic_stream`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from starlette.responses import Response

from freehold.errors import ContextError
from freehold.server.anthropic_request import (
    CountBody,
    MessagesBody,
    eager_tools,
    left_out,
    read_request,
    system_of,
    thinking_display,
)
from freehold.server.anthropic_stream import PING, ContentBlocks, message_of, streamed
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError, error_body
from freehold.server.resident import ModelCard
from freehold.server.service import Ticket, whole
from freehold.server.sse import EventStream, framed
from freehold.text.request import ChatRequest

log = logging.getLogger("freehold.server")

_EAGER_BETA = "fine-grained-tool-streaming-2025-05-14"
# Claude Code puts this line before its system prompt; its values are others with every request.
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")
_BILLING_LINE_DROPPED = (
    "the x-anthropic-billing-header line was left out of the system prompt, so that cached prefixes are found again"
)


class MessagesApi:
    """The handlers. drop_billing_line: leave out the line that Claude Code puts before its system prompt. It says
    nothing to a model, and since it always differs, no cached prefix could ever be found again.
    """

    def __init__(self, *, drop_billing_line: bool = True) -> None:
        self._drop_billing_line = drop_billing_line
        self._told = False

    async def create(self, call: Call) -> Response | EventStream:
        """One answer, streamed or whole."""
        body: MessagesBody = call.body
        ticket = await _accept(call, await asyncio.to_thread(self._read, call, body))
        message_id = f"msg_{secrets.token_hex(12)}"
        thinking = thinking_display(body)
        if body.stream:
            eager = eager_tools(body, by_default=_EAGER_BETA in call.headers.get("anthropic-beta", ""))
            blocks = ContentBlocks(lambda index: ticket.call_id(0, index), thinking=thinking, eager=eager)
            return EventStream(
                streamed(ticket, message_id, blocks),
                failure=lambda error: framed(error_body(error, "anthropic", call.request_id), "error"),
                keep_alive=PING,
                headers=_headers(call),
            )
        [events] = await whole(ticket)
        blocks = ContentBlocks(lambda index: ticket.call_id(0, index), thinking=thinking)
        message = message_of(ticket, message_id, blocks, events)
        if message["stop_reason"] == "max_tokens" and all(block["type"] == "thinking" for block in message["content"]):
            call.warnings.append("max_tokens ran out before the answer began; raise it, or ask for less thinking")
        return Json(message, headers=_headers(call))

    async def count(self, call: Call) -> Response:
        """The prompt's length in tokens, also of one that is too long to be answered."""
        body: CountBody = call.body
        request = await asyncio.to_thread(self._read, call, body)
        try:
            # What binds the answer is not part of the prompt, and takes time.
            asked = replace(request, enforce=False)
            n_tokens = await call.service.count(body.model, asked)
        except ContextError as error:
            n_tokens = error.n_prompt
        return Json({"input_tokens": n_tokens}, headers=_headers(call))

    def _read(self, call: Call, body: CountBody) -> ChatRequest:
        call.warnings += left_out(body)
        system = system_of(body)
        if self._drop_billing_line and (line := _BILLING_LINE.match(system)):
            system = system[line.end() :]
            call.warnings.append(_BILLING_LINE_DROPPED)
            if not self._told:
                self._told = True
                log.warning("%s; CLAUDE_CODE_ATTRIBUTION_HEADER=0 keeps it from being sent", _BILLING_LINE_DROPPED)
        return read_request(body, system=system, namespace=call.namespace)


def model_info(card: ModelCard) -> dict[str, Any]:
    """A model in the shape of Anthropic's GET /v1/models/{id}."""
    return {
        "type": "model",
        "id": card.name,
        "display_name": card.name,
        "created_at": datetime.fromtimestamp(card.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context,
        "max_tokens": card.context,
    }


def model_page(cards: Iterable[ModelCard]) -> dict[str, Any]:
    """All models in the shape of Anthropic's GET /v1/models: one page."""
    data = [model_info(card) for card in cards]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


async def _accept(call: Call, request: ChatRequest) -> Ticket:
    """As Call.accept, with this protocol's word for a prompt that is too long."""
    try:
        ticket = await call.accept(call.body.model, request)
    except ContextError as error:
        n_most = error.context - 1  # the answer has at least one token
        # The words that make Claude Code compact the conversation and try again.
        found = f"prompt is too long: {error.n_prompt} tokens > {n_most} maximum"
        raise ApiError(400, f"{found}; shorten it, or load the model with a larger context") from None
    if request.default_effort is not None and ticket.effort is None:
        call.warnings.append("the model has no reasoning effort to set; thinking and effort had no effect on it")
    return ticket


def _headers(call: Call) -> dict[str, str]:
    return {"request-id": call.request_id}  # where Anthropic's clients look for it


def endpoints(*, drop_billing_line: bool = True) -> tuple[Endpoint, ...]:
    """The routes, as MessagesApi says."""
    api = MessagesApi(drop_billing_line=drop_billing_line)
    return (
        Endpoint(
            method="POST",
            path="/v1/messages",
            handle=api.create,
            summary="Answer a conversation.",
            tag="Anthropic",
            body=MessagesBody,
            answers=("application/json", "text/event-stream"),
            statuses=(404, 429, 503, 504),
        ),
        Endpoint(
            method="POST",
            path="/v1/messages/count_tokens",
            handle=api.count,
            summary="Count the tokens of a conversation.",
            tag="Anthropic",
            body=CountBody,
            statuses=(404, 429, 503),
        ),
    )


ENDPOINTS = endpoints()
