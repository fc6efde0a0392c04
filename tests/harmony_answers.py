"""What a harmony answer says, as the parser's events add up to it: for the tests of the parser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from freehold.text.answer import CallStart, Event
from freehold.text.harmony_parser import HarmonyParser
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.tokenizer import Tokenizer
from scripted_model import HarmonyByteTokenizer, harmony

BYTES = cast(Tokenizer, HarmonyByteTokenizer())
OBJECT = {"type": "object", "properties": {}}


@dataclass
class Answer:
    """What the events of one answer add up to."""

    text: str
    reasoning: str
    calls: list[tuple[CallStart, str]]
    n_recoveries: int
    n_reasoning: int
    events: list[Event]

    @property
    def named(self) -> list[tuple[str, str]]:
        return [(call.name, arguments) for call, arguments in self.calls]


def tools(*names: str, parameters: Any = OBJECT) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in names]


def events_of(parser: HarmonyParser, ids: Sequence[int]) -> Iterator[Event]:
    for id in ids:
        yield from parser.push(id)
    yield from parser.finish()


def read(ids: Sequence[int], *names: str, tokenizer: Tokenizer = BYTES, parameters: Any = OBJECT) -> Answer:
    tokens = HarmonyTokens.of(tokenizer)
    assert tokens is not None
    parser = HarmonyParser(tokenizer, tokens, tools(*names, parameters=parameters))
    events = list(events_of(parser, ids))
    starts: list[CallStart] = []
    arguments: list[str] = []
    for event in events:
        if event.kind == "tool_call" and event.call is not None:
            assert event.index == len(starts)
            starts.append(event.call)
            arguments.append("")
        if event.kind == "tool_call":
            assert event.call or event.text
            arguments[event.index] += event.text
    return Answer(
        "".join(event.text for event in events if event.kind == "text"),
        "".join(event.text for event in events if event.kind == "reasoning"),
        list(zip(starts, arguments, strict=True)),
        parser.n_recoveries,
        parser.n_reasoning,
        events,
    )


def said(output: str, *names: str) -> Answer:
    return read(harmony(output), *names)
