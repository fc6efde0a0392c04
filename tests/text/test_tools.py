"""Tools whose argument is plain text: read, shown, called and written back; and what arguments of any tool must be."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.errors import RequestError
from freehold.text.chat import Message, ToolCall
from freehold.text.harmony import Harmony
from freehold.text.harmony_parser import HarmonyParser
from freehold.text.harmony_tools import Namespace, tools_section
from freehold.text.request import Grammar
from freehold.text.tools import MAX_CHARS, read_functions
from harmony_answers import BYTES, events_of
from scripted_model import HARMONY, harmony

LARK = {"syntax": "lark", "definition": 'start: "a"\n\n  | "b"'}


def custom(format: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "patch", "format": format, **more}}


def function(parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "grammar", "grammar": LARK}, Grammar("lark", LARK["definition"], where="tools[0] (patch).format")),
        ({"type": "grammar", **LARK}, Grammar("lark", LARK["definition"], where="tools[0] (patch).format")),
        (
            {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}},
            Grammar("regex", "a+", where="tools[0] (patch).format"),
        ),
    ],
)
def test_the_argument_of_a_custom_tool(format: Any, expected: Grammar | None) -> None:
    [tool] = read_functions([custom(format, description="Edits.")])
    assert (tool.name, tool.description, tool.is_custom, tool.parameters) == ("patch", "Edits.", True, None)
    assert tool.arguments == expected


@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (None, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({}, {"type": "object"}),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        ({"type": "object"}, {"type": "object"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
    ],
)
def test_the_arguments_of_a_function_are_an_object(parameters: Any, schema: Any) -> None:
    for strict in (True, False, None):
        [tool] = read_functions([function(parameters, strict=strict)])
        assert tool.arguments == Grammar("json_schema", schema, bool(strict), "tools[0] (f).parameters")


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"type": "custom"}, r"tools\[0\].custom is a NoneType"),
        (
            {"type": "mystery", "mystery": {}},
            r"tools\[0\] is of type 'mystery'; expected an object of type \"function\"",
        ),
        (custom(name=3), r"tools\[0\].custom.name is 3"),
        (custom("text"), r"tools\[0\].custom.format is 'text'"),
        (custom({"type": "json"}), "custom.format is"),
        (custom({"type": "grammar"}), "grammar.definition is a NoneType"),
        (custom({"type": "grammar", "grammar": 3}), "format.grammar is a int"),
        (
            custom({"type": "grammar", "grammar": {"syntax": "gbnf", "definition": ""}}),
            "syntax is 'gbnf'; expected 'lark'",
        ),
        (custom({"type": "grammar", "syntax": "regex", "definition": "a" * MAX_CHARS}), "too large"),
        (function(strict="yes"), "strict is 'yes'; expected true or false"),
    ],
)
def test_tools_that_are_refused(tool: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_functions([tool])


def test_how_the_model_sees_it() -> None:
    shown = tools_section(
        [
            Namespace(
                "functions",
                functions=read_functions(
                    [custom({"type": "grammar", "grammar": LARK}, description="Edits.\nWell."), custom(name="say")]
                ),
            )
        ]
    )
    assert "// Edits.\n// Well.\n// The argument is raw text: write it as it is, not as JSON.\n" in shown
    assert (
        '// It must match this Lark grammar:\n// start: "a"\n// \n//   | "b"\ntype patch = (_: string) => any;' in shown
    )
    assert "\n// The argument is raw text: write it as it is, not as JSON.\ntype say = (_: string) => any;" in shown


def test_its_arguments_come_verbatim_and_nothing_counts_as_a_slip() -> None:
    for body in ("*** Begin Patch", '[{"a": 1}]', "", "  {", '{"input": "x"}'):
        parser = HarmonyParser(BYTES, HARMONY, [custom()])
        output = harmony(f"<|channel|>commentary to=functions.patch<|message|>{body}<|call|>")
        events = list(events_of(parser, output))
        assert [event.call.name for event in events if event.call] == ["patch"]
        assert "".join(event.text for event in events) == body
        assert parser.n_recoveries == 0


@pytest.mark.parametrize("offered", [True, False])
def test_a_call_in_the_past_is_written_as_text(offered: bool) -> None:
    call = ToolCall("patch", "raw {", "c1", is_custom=not offered)
    messages = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=(call, ToolCall("f", "{}", "c2"))),
        Message("tool", "done", tool_call_id="c1"),
    ]
    tools = [custom(), function()] if offered else []
    text = Harmony(BYTES).render_text(messages, tools=tools)
    assert "<|start|>assistant to=functions.patch<|channel|>commentary<|message|>raw {<|call|>" in text
    assert "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>" in text
    assert "<|start|>functions.patch to=assistant<|channel|>commentary<|message|>done<|end|>" in text


def test_a_call_as_clients_send_it_back() -> None:
    data = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "patch", "input": "raw {"}}],
    }
    message = Message.from_dict(data)
    assert message.tool_calls == (ToolCall("patch", "raw {", "c1", is_custom=True),)
    assert Message.from_dict(message.to_dict()) == message
    assert message.to_template()["tool_calls"][0]["function"] == {"name": "patch", "arguments": "raw {"}
    for wrong in (
        {},
        {"name": "patch"},
        {"name": "", "input": "x"},
        {"name": "patch", "input": {}},
        {"name": "p", "x": 1},
    ):
        with pytest.raises(RequestError, match="custom"):
            ToolCall.from_dict({"type": "custom", "custom": wrong})
