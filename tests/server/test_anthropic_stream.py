"""Streams of the Messages API against whole messages, for whatever a model says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server.anthropic_stream import PING, ContentBlocks, message_of, stop_of, streamed
from freehold.server.errors import ApiError
from freehold.server.service import Ticket
from freehold.text.answer import CallStart, Event
from freehold.text.harmony_parser import HarmonyParser
from harmony_answers import BYTES, tools
from scripted_model import CALL, CHANNEL, CONSTRAIN, END, HARMONY, MESSAGE, RETURN, START, harmony

CONTROL = st.sampled_from([START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL])
PHRASES = st.sampled_from(
    [
        "<|channel|>analysis<|message|>hm",
        "<|channel|>final<|message|>日本",
        "<|channel|>commentary to=functions.ls <|constrain|>json<|message|>{}",
        '<|start|>assistant to=functions.ls<|channel|>commentary<|message|>{"a":"\\ud800"}<|call|>',
        '{"a":1}',
        "<|end|><|start|>assistant",
    ]
).map(harmony)
IDS = st.lists(PHRASES | CONTROL.map(lambda id: [id]) | st.lists(st.integers(0, 255), max_size=6), max_size=12).map(
    lambda runs: [id for run in runs for id in run]
)


class _Ticket:
    """What of a ticket an answer's writing needs."""

    model = "m"
    n_prompt = 20

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    async def events(self, n: int = 1) -> AsyncGenerator[tuple[int, Event], None]:
        for event in self._events:
            yield 0, event


def events_of(ids: Sequence[int]) -> list[Event]:
    """The events of an answer; calls decide how it ends."""
    parser = HarmonyParser(BYTES, HARMONY, tools("ls"))
    events = [event for id in ids for event in parser.push(id)] + [*parser.finish()]
    reason: Any = "tool_calls" if any(event.kind == "tool_call" for event in events) else "stop"
    return [*events, Event("finish", finish_reason=reason, n_prompt=20, n_cached=5, n_generated=9, n_reasoning=2)]


def blocks(**options: Any) -> ContentBlocks:
    return ContentBlocks(lambda index: f"call_{index}", **options)


def sent(events: Sequence[Event], **options: Any) -> list[dict[str, Any]]:
    """The events of the stream, as read from its bytes."""

    async def pieces() -> list[bytes]:
        return [piece async for piece in streamed(cast(Ticket, _Ticket(events)), "msg_1", blocks(**options))]

    read = []
    for event in b"".join(asyncio.run(pieces())).decode().strip().split("\n\n"):
        name, data = event.split("\n", 1)
        read.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {read[-1]['type']}"
    return read


def put_together(wire: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message a client makes of a stream, which must be in order."""
    message: dict[str, Any] = wire[0]["message"]
    open_block = None
    for one in wire[1:-2]:
        if one["type"] == "content_block_start":
            assert open_block is None
            assert one["index"] == len(message["content"])
            open_block, arguments = one["content_block"], ""
            message["content"].append(open_block)
        elif one["type"] == "content_block_delta":
            assert open_block is not None
            assert one["index"] == len(message["content"]) - 1
            delta = one["delta"]
            field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(
                delta["type"]
            )
            if field is None:
                arguments += delta["partial_json"]
                open_block["input"] = json.loads(arguments)
            else:
                open_block[field] += delta[field]
        else:
            assert one == {"type": "content_block_stop", "index": len(message["content"]) - 1}
            open_block = None
    assert open_block is None
    assert [one["type"] for one in wire[-2:]] == ["message_delta", "message_stop"]
    message.update(wire[-2]["delta"])
    message["usage"].update(wire[-2]["usage"])
    return message


@given(IDS, st.sampled_from(["shown", "omitted", "hidden"]))
@settings(max_examples=120, deadline=None)
def test_a_stream_adds_up_to_the_whole(ids: list[int], thinking: Any) -> None:
    events = events_of(ids)
    whole = message_of(cast(Ticket, _Ticket(events)), "msg_1", blocks(thinking=thinking), events)
    assert put_together(sent(events, thinking=thinking)) == json.loads(json.dumps(whole))
    text = "".join(block["text"] for block in whole["content"] if block["type"] == "text")
    assert text == "".join(event.text for event in events if event.kind == "text")
    thoughts = "".join(block["thinking"] for block in whole["content"] if block["type"] == "thinking")
    assert thoughts == ("".join(e.text for e in events if e.kind == "reasoning") if thinking == "shown" else "")
    assert sum(block["type"] == "tool_use" for block in whole["content"]) == sum(e.call is not None for e in events)


@given(IDS)
@settings(max_examples=60, deadline=None)
def test_eager_input_is_what_the_model_wrote(ids: list[int]) -> None:
    events = events_of(ids)
    wire = sent(events, eager={"ls"})
    arguments: dict[int, str] = {}
    for one in wire:
        if one["type"] == "content_block_delta" and one["delta"]["type"] == "input_json_delta":
            arguments[one["index"]] = arguments.get(one["index"], "") + one["delta"]["partial_json"]
    assert "".join(arguments.values()) == "".join(event.text for event in events if event.kind == "tool_call")


def test_two_calls_are_two_blocks() -> None:
    events = [
        Event("tool_call", '{"a":', call=CallStart("ls")),
        Event("tool_call", "1}"),
        Event("tool_call", "", call=CallStart("ls"), index=1),
        Event("tool_call", '{"a":2}', index=1),
        Event("finish", finish_reason="tool_calls"),
    ]
    message = put_together(sent(events))
    assert [(block["id"], block["input"]) for block in message["content"]] == [
        ("toolu_0", {"a": 1}),
        ("toolu_1", {"a": 2}),
    ]


def test_message_start_counts_the_prompt_and_message_delta_corrects_it() -> None:
    wire = sent(events_of(harmony("<|channel|>final<|message|>x<|return|>")))
    start, final = wire[0]["message"]["usage"], wire[-2]["usage"]
    assert start == {
        "input_tokens": 20,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    assert final == {
        "input_tokens": 15,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 5,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 2},
    }


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (Event("finish", finish_reason="stop"), ("end_turn", None)),
        (Event("finish", finish_reason="stop", stop="END"), ("stop_sequence", "END")),
        (Event("finish", finish_reason="length"), ("max_tokens", None)),
        (Event("finish", finish_reason="tool_calls"), ("tool_use", None)),
        (Event("finish", finish_reason="tool_calls", stop="END"), ("tool_use", None)),
    ],
)
def test_stop_reasons(finish: Event, expected: tuple[str, str | None]) -> None:
    assert stop_of(finish) == expected


def test_the_sign_of_life_is_a_ping() -> None:
    assert PING == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_an_answer_that_broke_off_is_an_error() -> None:
    with pytest.raises(ApiError, match="broken off") as raised:
        stop_of(Event("finish", finish_reason="cancelled"))
    assert raised.value.status == 503
