"""The answers of Chat Completions: events to the chunks of a stream, and to the one object that says the same.

Owns the shape of messages and deltas. A choice that is not streamed is added up from the very events that deltas are
made of, so the two cannot differ. Knows nothing of the request but its tools.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from freehold.server import openai_shapes as shapes
from freehold.server.service import Ticket, finish_reason
from freehold.server.sse import DONE, framed
from freehold.text.answer import Event, TokenLogprob

_NO_ROOM = "the answer is empty because its tokens ran out{where}; raise max_completion_tokens"
_NOT_JSON = "the arguments of call {index} ({name}) are not JSON; they are passed on as the model wrote them"


class Completion:
    """All answers to one request, as one object or as chunks."""

    def __init__(self, ticket: Ticket, tools: Iterable[Mapping[str, Any]], n: int) -> None:
        self._ticket = ticket
        self._customs = shapes.custom_names(tools)
        self._choices = [Choice(number, self) for number in range(n)]
        self._identity = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": ticket.created,
            "model": ticket.model,
            "system_fingerprint": shapes.fingerprint(ticket.model),
        }

    def call_head(self, choice: int, index: int, name: str) -> dict[str, Any]:
        """A call's id, and what kind of tool it calls."""
        kind = "custom" if name in self._customs else "function"
        return {"id": self._ticket.call_id(choice, index), "type": kind}

    def whole(self, answers: Sequence[Sequence[Event]]) -> dict[str, Any]:
        """The object that is not streamed."""
        for choice, events in zip(self._choices, answers, strict=True):
            for event in events:
                choice.take(event)
        return {
            **self._identity,
            "object": "chat.completion",
            "choices": [choice.whole() for choice in self._choices],
            "usage": shapes.usage([events[-1] for events in answers]),
        }

    async def pieces(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """The chunks of the stream."""
        head: dict[str, Any] = {**self._identity, "object": "chat.completion.chunk"}
        if with_usage:
            head["usage"] = None
        finishes = []
        async with aclosing(self._ticket.events(len(self._choices))) as events:
            async for number, event in events:
                for piece in self._choices[number].take(event):
                    yield framed({**head, "choices": [piece]})
                if event.kind == "finish":
                    finishes.append(event)
        if with_usage:
            yield framed({**head, "choices": [], "usage": shapes.usage(finishes)})
        yield DONE


class Choice:
    """One answer in the making: `take` gives an event's part of the stream, `whole` what all of them add up to."""

    def __init__(self, number: int, completion: Completion) -> None:
        self._number = number
        self._completion = completion
        self._begun = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_CallMade] = []
        self._logprobs: list[TokenLogprob] = []
        self._end: dict[str, Any] = {}

    def take(self, event: Event) -> list[dict[str, Any]]:
        """The choices of the chunks that say this event."""
        pieces = [] if self._begun else [self._piece({"role": "assistant", "content": self._first_content(event)})]
        self._begun = True
        if event.kind == "text":
            self._text.append(event.text)
            self._logprobs += event.logprobs
            pieces.append(self._piece({"content": event.text}, event.logprobs))
        elif event.kind == "reasoning":
            self._reasoning.append(event.text)
            pieces.append(self._piece({"reasoning": event.text, "reasoning_content": event.text}))
        elif event.kind == "tool_call":
            pieces += [self._piece({"tool_calls": [delta]}) for delta in self._call_deltas(event)]
        else:
            self._end = {"finish_reason": finish_reason(event), **self._hint(event)}
            pieces.append({**self._piece({}), **self._end})
        return pieces

    def whole(self) -> dict[str, Any]:
        """The choice that is not streamed."""
        text = "".join(self._text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if not text and (self._reasoning or self._calls) else text,
            "refusal": None,
        }
        if self._reasoning:
            message |= dict.fromkeys(("reasoning", "reasoning_content"), "".join(self._reasoning))
        if self._calls:
            message["tool_calls"] = [made.whole() for made in self._calls]
        return {"index": self._number, "message": message, "logprobs": _shown(self._logprobs), **self._end}

    def _piece(self, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        return {"index": self._number, "delta": delta, "logprobs": _shown(logprobs), "finish_reason": None}

    def _first_content(self, event: Event) -> str | None:
        """Clients join deltas: null stays null where only calls and reasoning follow."""
        return None if event.kind in ("reasoning", "tool_call") else ""

    def _call_deltas(self, event: Event) -> Iterable[dict[str, Any]]:
        if event.call is not None:
            made = _CallMade(event.call.name, self._completion.call_head(self._number, event.index, event.call.name))
            self._calls.append(made)
            yield {"index": event.index, **made.whole()}
        if event.text:
            made = self._calls[event.index]
            made.pieces.append(event.text)
            yield {"index": event.index, made.kind: {made.input_key: event.text}}

    def _hint(self, finish: Event) -> dict[str, str]:
        """What the protocol has no word for, and its reader should know."""
        if finish.finish_reason == "length" and not self._text and not self._calls:
            where = " while the model was reasoning" if self._reasoning else " before it began"
            return {"freehold_hint": _NO_ROOM.format(where=where)}
        if finish.finish_reason == "tool_calls":
            for index, made in enumerate(self._calls):
                if made.kind == "function" and not made.is_json():
                    return {"freehold_hint": _NOT_JSON.format(index=index, name=made.name)}
        return {}


def _shown(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Null where no visible token came, and where none were asked for."""
    return {"content": shapes.logprob_items(logprobs), "refusal": None} if logprobs else None


class _CallMade:
    """A call in the making."""

    def __init__(self, name: str, head: dict[str, Any]) -> None:
        self.name = name
        self.kind: str = head["type"]
        self.input_key = "input" if self.kind == "custom" else "arguments"
        self.pieces: list[str] = []
        self._head = head

    def whole(self) -> dict[str, Any]:
        return {**self._head, self.kind: {"name": self.name, self.input_key: "".join(self.pieces)}}

    def is_json(self) -> bool:
        try:
            json.loads("".join(self.pieces))
        except (ValueError, RecursionError):
            return False
        return True
