"""Earlier turns in the shape that a template takes: templates agree on the names of fields, not on their contents.

Owns how calls are handed over: arguments as an object or as text, and nothing or an empty text where only calls were
said. Which it is, a trial rendering tells, since a template given the other writes calls wrongly or leaves them out.
Knows no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.errors import TemplateError
from freehold.text.chat import Message

Shaped = dict[str, Any]
_NAME, _VALUE = "probed_name", "probed_value"
_ARGUMENTS = f'{{"key": "{_VALUE}"}}'
_SWITCH = re.compile(r"(?<![.\w])(enable_thinking|thinking) is (?:not )?defined")


@dataclass(frozen=True)
class CallShape:
    """null_content: a turn of calls alone has no content, instead of an empty one. text_arguments: as JSON text."""

    null_content: bool = False
    text_arguments: bool = False

    def shaped(self, message: Message) -> Shaped:
        shaped = message.to_template()
        if message.tool_calls and not message.content and self.null_content:
            shaped["content"] = None
        if self.text_arguments:
            for call, written in zip(message.tool_calls, shaped.get("tool_calls", ()), strict=True):
                if not call.is_custom:
                    written["function"]["arguments"] = call.arguments
        return shaped


def call_shape(render: Callable[[list[Shaped]], str]) -> CallShape:
    """The shape under which the template writes a call in full and nothing beside it: the shortest such rendering."""
    trial = Message.from_dict(
        {"role": "assistant", "tool_calls": [{"id": "call_0", "function": {"name": _NAME, "arguments": _ARGUMENTS}}]}
    )
    result = Message("tool", "result", tool_call_id="call_0", name=_NAME)
    for text_arguments in (False, True):
        written: dict[CallShape, int] = {}
        for null_content in (False, True):
            shape = CallShape(null_content, text_arguments)
            messages = [Message("user", "question"), trial, result]
            try:
                text = render([shape.shaped(message) for message in messages])
            except TemplateError:
                continue
            if _NAME in text and _VALUE in text:
                written[shape] = len(text)
        if written:
            return min(written, key=written.__getitem__)
    return CallShape()


def numbered(messages: Sequence[Message], shaped: Sequence[Shaped]) -> None:
    """Give the calls in `shaped` the ids that Kimi's models are trained on, functions.NAME:0 and on, whatever ids a
    client has seen; results follow their calls.
    """
    ids: dict[str, str] = {}
    n_calls = 0
    for message, written in zip(messages, shaped, strict=True):
        for call, entry in zip(message.tool_calls, written.get("tool_calls", ()), strict=True):
            entry["id"] = f"functions.{call.name}:{n_calls}"
            n_calls += 1
            if call.id is not None:
                ids[call.id] = entry["id"]
        if message.tool_call_id in ids:
            written["tool_call_id"] = ids[message.tool_call_id]


def deeply_sorted(value: Any) -> Any:
    """Tools with the keys of every object in order, as the tokenizer class of Kimi's publisher gives them to it."""
    if isinstance(value, Mapping):
        return {key: deeply_sorted(value[key]) for key in sorted(value, key=str)}
    return [deeply_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def switched(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options with the reasoning effort "none" as the switch that a template has instead of efforts, if any."""
    switch = None if re.search(r"\breasoning_effort\b", source) else _SWITCH.search(source)
    if options.get("reasoning_effort") != "none" or switch is None:
        return dict(options)
    return {**{name: value for name, value in options.items() if name != "reasoning_effort"}, switch[1]: False}
