"""An answer on its way to an Anthropic client: our Events to content blocks, piece by piece or as a whole.

Owns the order of the streaming events, stop reasons and usage. A whole message is made of the same events that a stream
would have sent, so the two cannot differ. Knows nothing of requests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from freehold.server.anthropic_messages import INVALID_JSON, tool_use_id
from freehold.server.arguments import as_object
from freehold.server.service import Ticket, finish_reason
from freehold.server.sse import dumps, framed
from freehold.text.answer import Event

PING = framed({"type": "ping"}, "ping")
SIGNATURE = "ZnJlZWhvbGQ="
"""Of every thinking block. Clients send it back and some drop a block without one; it says "freehold" in base64."""

ThinkingDisplay = Literal["shown", "omitted", "hidden"]
"""Reasoning as text, as blocks without their text, or not at all."""

WireEvent = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class ContentBlocks:
    """One answer's events to the streaming events of its content blocks.

    call_id gives the id of a call by its number. The arguments of a call are sent when they are complete, for clients
    fail on what is not JSON; those of the tools in `eager` as they come, whatever the model makes of them.
    """

    def __init__(
        self,
        call_id: Callable[[int], str],
        *,
        thinking: ThinkingDisplay = "shown",
        eager: Container[str] = frozenset(),
    ) -> None:
        self._call_id = call_id
        self._thinking = thinking
        self._eager = eager
        self._index = -1
        self._open: str | None = None  # the kind of Event that the open block holds
        self._held: list[str] | None = None  # arguments of the open call, where they wait for their end

    def push(self, item: Event) -> list[WireEvent]:
        """What `item` makes known; "finish" closes what is open."""
        if item.kind == "finish":
            return self._close()
        if item.kind == "reasoning" and self._thinking == "hidden":
            return []
        wire = []
        if item.kind != self._open or item.call is not None:
            wire = [*self._close(), self._start(item)]
        if item.kind == "text":
            wire.append(self._delta("text_delta", "text", item.text))
        elif item.kind == "reasoning":
            if self._thinking == "shown":
                wire.append(self._delta("thinking_delta", "thinking", item.text))
        elif self._held is not None:
            self._held.append(item.text)
        elif item.text:
            wire.append(self._delta("input_json_delta", "partial_json", item.text))
        return wire

    def _start(self, item: Event) -> WireEvent:
        self._index += 1
        self._open = item.kind
        block: dict[str, Any]
        if item.kind == "text":
            block = {"type": "text", "text": ""}
        elif item.kind == "reasoning":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            assert item.call is not None  # of a call's first event
            name = item.call.name
            self._held = None if name in self._eager else []
            block = {"type": "tool_use", "id": tool_use_id(self._call_id(item.index)), "name": name, "input": {}}
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, field: str, text: str) -> WireEvent:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, field: text}}

    def _close(self) -> list[WireEvent]:
        if self._open is None:
            return []
        wire = []
        if self._open == "reasoning":
            wire.append(self._delta("signature_delta", "signature", SIGNATURE))
        elif self._held is not None and (tool_input := as_object("".join(self._held), INVALID_JSON)):
            wire.append(self._delta("input_json_delta", "partial_json", dumps(tool_input).decode()))
        self._open, self._held = None, None
        return [*wire, {"type": "content_block_stop", "index": self._index}]


async def streamed(ticket: Ticket, message_id: str, blocks: ContentBlocks) -> AsyncGenerator[bytes, None]:
    """The server-sent events of an answer, from message_start to message_stop.

    How much of the prompt was cached is known at the end: message_start counts all of it as not cached, and
    message_delta, whose numbers replace the earlier ones, tells the two apart.
    """
    head = _message(ticket.model, message_id, [], None, None, _usage(ticket.n_prompt, 0, 0))
    yield framed({"type": "message_start", "message": head}, "message_start")
    async with aclosing(ticket.events()) as events:
        async for _, item in events:
            wire = blocks.push(item)
            if item.kind == "finish":
                reason, sequence = stop_of(item)
                delta = {"stop_reason": reason, "stop_sequence": sequence}
                wire.append({"type": "message_delta", "delta": delta, "usage": _final_usage(item)})
                wire.append({"type": "message_stop"})
            if wire:
                yield b"".join(framed(one, one["type"]) for one in wire)


def message_of(ticket: Ticket, message_id: str, blocks: ContentBlocks, events: Sequence[Event]) -> dict[str, Any]:
    """The whole message that `streamed` would have sent in pieces."""
    finish = events[-1]
    wire = [one for item in events for one in blocks.push(item)]
    return _message(ticket.model, message_id, _content(wire), *stop_of(finish), _final_usage(finish))


def stop_of(finish: Event) -> tuple[str, str | None]:
    """stop_reason and stop_sequence. Raises ApiError 503 for an answer that the server broke off."""
    reason = finish_reason(finish)
    if reason == "stop" and finish.stop is not None:
        return "stop_sequence", finish.stop
    return _STOP_REASONS[reason], None


def _content(wire: Iterable[WireEvent]) -> list[dict[str, Any]]:
    """Content blocks from their streaming events, put together as a client does."""
    content: list[dict[str, Any]] = []
    texts: dict[str, list[str]] = {}
    for one in wire:
        if one["type"] == "content_block_start":
            content.append(dict(one["content_block"]))
            texts = {}
        elif one["type"] == "content_block_stop":
            content[-1].update({field: "".join(pieces) for field, pieces in texts.items()})
        elif (delta := one["delta"])["type"] == "input_json_delta":
            content[-1]["input"] = json.loads(delta["partial_json"])
        else:
            field = _FIELDS[delta["type"]]
            texts.setdefault(field, []).append(delta[field])
    return content


def _message(
    model: str,
    message_id: str,
    content: list[dict[str, Any]],
    reason: str | None,
    sequence: str | None,
    usage: dict[str, Any],
) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage,
    }


def _usage(n_prompt: int, n_cached: int, n_generated: int) -> dict[str, Any]:
    """Anthropic's three input counts exclude each other; what is newly cached costs nothing extra here."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_generated,
    }


def _final_usage(finish: Event) -> dict[str, Any]:
    usage = _usage(finish.n_prompt, finish.n_cached, finish.n_generated)
    return {**usage, "output_tokens_details": {"thinking_tokens": finish.n_reasoning}}
