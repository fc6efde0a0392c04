"""The answers of Ollama's /api/chat and /api/generate: events to lines of JSON, or to one object.

Owns the shape of both. An answer that is not streamed is put together from the very lines that would have been. Ollama
passes a call on whole, its arguments as an object.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any, Literal

from freehold.server.arguments import as_object
from freehold.server.openai_shapes import logprob_items
from freehold.server.service import Ticket, finish_reason, whole
from freehold.server.sse import dumps
from freehold.text.answer import CallStart, Event

RAW_ARGUMENTS = "raw_arguments"
"""Key of a call's arguments, as text, where the model did not write a JSON object."""

_NO_ROOM = "the answer is empty because its tokens ran out; raise num_predict"
_NOT_JSON = f"arguments that are not a JSON object are passed on as the model wrote them, under {RAW_ARGUMENTS}"

Line = dict[str, Any]


class Answer:
    """One answer in the making.

    Durations are in nanoseconds: `load_duration` until the model was there and the prompt rendered,
    `prompt_eval_duration` from there, the wait for a turn included, to the first word, `eval_duration` to the end.
    `prompt_eval_count` is the whole prompt; `prompt_eval_cached_count` of it, which Ollama does not say, was cached.
    `freehold_hint` at the end is for a reader who wonders.
    """

    def __init__(self, kind: Literal["chat", "generate"], model: str, ticket: Ticket, began: int) -> None:
        """began: of the request, by time.perf_counter_ns."""
        self._kind = kind
        self._ticket = ticket
        self._head = {"model": model, "created_at": timestamp(ticket.created)}
        self._call: tuple[CallStart, int, list[str]] | None = None
        self._began = began
        self._accepted = time.perf_counter_ns()
        self._first = 0
        self._answers = False  # in text or calls
        self._raw = False  # arguments that are no object

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The answer as lines of JSON."""
        async with aclosing(self._ticket.events()) as events:
            async for _, event in events:
                for line in self._lines(event):
                    yield dumps(line) + b"\n"

    async def whole(self) -> Line:
        """The answer as one object."""
        (events,) = await whole(self._ticket)
        lines = [line for event in events for line in self._lines(event)]
        return _joined(lines)

    def _lines(self, event: Event) -> Iterator[Line]:
        if not self._first:
            self._first = time.perf_counter_ns()
        if self._call is not None and not (event.kind == "tool_call" and event.index == self._call[1]):
            yield self._line(calls=[self._whole_call(*self._call)])
            self._call = None
        self._answers |= event.kind in ("text", "tool_call")
        if event.kind == "text":
            yield self._line(text=event.text, logprobs=logprob_items(event.logprobs))
        elif event.kind == "reasoning":
            yield self._line(thinking=event.text)
        elif event.kind == "tool_call":
            if event.call is not None:
                self._call = event.call, event.index, []
            assert self._call is not None
            self._call[2].append(event.text)
        else:
            yield {**self._line(), **self._finish(event)}

    def _line(
        self,
        text: str = "",
        thinking: str = "",
        calls: Sequence[Mapping[str, Any]] = (),
        logprobs: Sequence[Mapping[str, Any]] = (),
    ) -> Line:
        said: Line = {"thinking": thinking} if thinking else {}
        if calls:
            said["tool_calls"] = calls
        more = {"logprobs": logprobs} if logprobs else {}
        if self._kind == "chat":
            return {**self._head, "message": {"role": "assistant", "content": text, **said}, **more, "done": False}
        return {**self._head, "response": text, **said, **more, "done": False}

    def _whole_call(self, call: CallStart, index: int, pieces: Sequence[str]) -> dict[str, Any]:
        arguments = as_object("".join(pieces), RAW_ARGUMENTS)
        self._raw |= RAW_ARGUMENTS in arguments
        function = {"index": index, "name": call.name, "arguments": arguments}
        return {"id": self._ticket.call_id(0, index), "function": function}

    def _finish(self, event: Event) -> dict[str, Any]:
        reason = finish_reason(event)  # raises for an answer that was broken off
        now = time.perf_counter_ns()
        empty = reason == "length" and not self._answers
        hint = _NO_ROOM if empty else _NOT_JSON if self._raw else None
        return {
            "done": True,
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": now - self._began,
            "load_duration": self._accepted - self._began,
            "prompt_eval_count": event.n_prompt,
            "prompt_eval_cached_count": event.n_cached,
            "prompt_eval_duration": self._first - self._accepted,
            "eval_count": event.n_generated,
            "eval_duration": now - self._first,
            **({} if hint is None else {"freehold_hint": hint}),
        }


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as a date and time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _joined(lines: Sequence[Line]) -> Line:
    """Lines added up, as a client does; what the last one says of the whole stays."""
    message = lines[-1].get("message")
    parts = [line if message is None else line["message"] for line in lines]
    text_key = "response" if message is None else "content"
    said: Line = {text_key: "".join(part[text_key] for part in parts)}
    if thinking := "".join(part.get("thinking", "") for part in parts):
        said["thinking"] = thinking
    if calls := [call for part in parts for call in part.get("tool_calls", ())]:
        said["tool_calls"] = calls
    logprobs = [item for line in lines for item in line.get("logprobs", ())]
    more = {"logprobs": logprobs} if logprobs else {}
    return {**lines[-1], **(said if message is None else {"message": {**message, **said}}), **more}
