"""The answers of the Responses API: events to output items, to the streaming events that tell of them, to the response.

Owns the shape and the order of all three. What is not streamed is added up from the very events that are sent, so the
two cannot differ. Knows of the request only what its response repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from freehold.server import openai_shapes as shapes
from freehold.server.errors import ApiError
from freehold.server.responses_items import item_id, new_turn
from freehold.server.responses_tools import Offer
from freehold.server.service import finish_reason
from freehold.text.answer import Event

Kind = Literal["message", "reasoning", "function_call", "custom_tool_call"]
Sent = dict[str, Any]
"""A streaming event."""

_PREFIXES: dict[Kind, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
}
_EVENTS: dict[Kind, str] = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
_CONTENT_KINDS = ("message", "reasoning")  # whose text stands in a part of the item, and is a part by itself


class Answer:
    """One response in the making: `begin`, then `take` each Event; `response` is the object as it then stands.

    `head` are the fields that do not change, id included. call_id gives the id of the answer's call by its number.
    """

    def __init__(self, head: dict[str, Any], offer: Offer, call_id: Callable[[int], str]) -> None:
        self.response: dict[str, Any] = {
            **head,
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        self._offer = offer
        self._call_id = call_id
        self._turn = new_turn()
        self._items: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._n_sent = 0

    def begin(self) -> Iterator[Sent]:
        """What is said before anything is generated."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response={**self.response})

    def take(self, event: Event) -> Iterator[Sent]:
        """The streaming events that say this one. Raises ApiError for an answer that the server broke off."""
        if event.kind == "finish":
            yield from self._finish(event)
            return
        if event.kind == "tool_call":
            if event.call is not None:
                yield from self._close()
                yield from self._start_call(event.call.name, event.index)
        elif event.text:
            kind: Kind = "message" if event.kind == "text" else "reasoning"
            if self._open is None or self._open.kind != kind:
                yield from self._close()
                yield from self._start(kind)
        if event.text:
            yield self._delta(event)

    @property
    def ran_out(self) -> bool:
        """Whether the tokens were spent before anything was said or called."""
        silent = all(item["type"] == "reasoning" for item in self._items)
        return silent and self.response["status"] == "incomplete"

    def fail(self, error: ApiError, message: str) -> Sent:
        """The event that says that the answer broke off, with what there is of it."""
        if self._open is not None:
            self._items.append(self._open.whole("incomplete"))
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": message}, "output": self._items}
        return self._event("response.failed", response=self.response)

    def _finish(self, event: Event) -> Iterator[Sent]:
        cut = finish_reason(event) == "length"
        status = "incomplete" if cut else "completed"
        yield from self._close(status)
        if not cut and all(item["type"] == "reasoning" for item in self._items):
            # Agents take a response that neither says nor calls anything for an unfinished one, and ask for ever.
            yield from self._start("message")
            yield from self._close()
        self.response |= {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items,
            "usage": _usage(event),
        }
        yield self._event(f"response.{status}", response=self.response)

    def _start(self, kind: Kind, **fields: Any) -> Iterator[Sent]:
        index = len(self._items)
        self._open = opened = _Open(kind, index, item_id(_PREFIXES[kind], self._turn, index), fields)
        yield self._event("response.output_item.added", output_index=index, item=opened.added())
        if kind in _CONTENT_KINDS:
            yield self._event("response.content_part.added", **opened.place, part=opened.part(""))

    def _start_call(self, name: str, number: int) -> Iterator[Sent]:
        namespace, shown = self._offer.origin.get(name, (None, name))
        fields = {"call_id": self._call_id(number), "name": shown}
        if namespace is not None:
            fields["namespace"] = namespace
        return self._start("custom_tool_call" if name in self._offer.customs else "function_call", **fields)

    def _delta(self, event: Event) -> Sent:
        opened = self._open
        assert opened is not None
        opened.pieces.append(event.text)
        fields: dict[str, Any] = {"delta": event.text}
        if opened.kind == "message":
            fields["logprobs"] = logprobs = shapes.logprob_items(event.logprobs)
            opened.logprobs += logprobs
        return self._event(f"{_EVENTS[opened.kind]}.delta", **opened.place, **fields)

    def _close(self, status: str = "completed") -> Iterator[Sent]:
        opened, self._open = self._open, None
        if opened is None:
            return
        item, text = opened.whole(status), opened.text
        done = {opened.text_key: text, **({"logprobs": opened.logprobs} if opened.kind == "message" else {})}
        yield self._event(f"{_EVENTS[opened.kind]}.done", **opened.place, **done)
        if opened.kind in _CONTENT_KINDS:
            yield self._event("response.content_part.done", **opened.place, part=item["content"][0])
        self._items.append(item)
        yield self._event("response.output_item.done", output_index=opened.index, item=item)

    def _event(self, name: str, **fields: Any) -> Sent:
        self._n_sent += 1
        return {"type": name, "sequence_number": self._n_sent - 1, **fields}


@dataclass
class _Open:
    """The item that is being written."""

    kind: Kind
    index: int
    id: str
    fields: dict[str, Any]
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def text_key(self) -> str:
        """Under which name the text stands."""
        return {"function_call": "arguments", "custom_tool_call": "input"}.get(self.kind, "text")

    @property
    def place(self) -> dict[str, Any]:
        """Where the text belongs, as streaming events say it."""
        place: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return {**place, "content_index": 0} if self.kind in _CONTENT_KINDS else place

    def part(self, text: str) -> dict[str, Any]:
        """The text as a part of the item's content."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self.logprobs]}

    def added(self) -> dict[str, Any]:
        """The item as it is announced."""
        return self._item("in_progress", [], "")

    def whole(self, status: str) -> dict[str, Any]:
        """The item as far as it was written."""
        text = self.text
        return self._item(status, [self.part(text)] if self.kind in _CONTENT_KINDS else [], text)

    def _item(self, status: str, content: list[dict[str, Any]], text: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status, **self.fields}
        if self.kind == "message":
            return {**item, "role": "assistant", "content": content}
        if self.kind == "reasoning":
            return {**item, "summary": [], "content": content}
        return {**item, self.text_key: text}


def _usage(finish: Event) -> dict[str, Any]:
    used = shapes.usage(finish)
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": used["completion_tokens_details"],
        "total_tokens": used["total_tokens"],
    }
