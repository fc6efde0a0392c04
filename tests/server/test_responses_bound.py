"""The Responses API: what a request binds its answer to holds, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from responses_scripted import THOUGHT, responding
from scripted_model import HarmonyRoles, RoleTemplate, harmony

FLAG = {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}
TOOLS: list[dict[str, Any]] = [{"type": "function", "name": name, "parameters": FLAG} for name in ("look", "find")]
PATCH = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin\\n" /[a-z]+/ "\\n*** End"'},
}
GREETING = harmony("<|channel|>final<|message|>Hello, how are you?<|return|>")
BEGGED = harmony("<|channel|>commentary to=functions.look json<|message|>{}<|call|>")


def calls(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"].endswith("call")]


def test_required_gives_a_call_where_the_model_would_greet() -> None:
    with responding(GREETING, chat_format=HarmonyRoles) as server:
        (call,) = calls(server.both(tools=TOOLS, tool_choice="required"))
    assert call["name"] in ("look", "find")
    assert isinstance(json.loads(call["arguments"]), dict)


def test_a_named_tool_is_the_one_that_is_called() -> None:
    with responding(BEGGED, chat_format=HarmonyRoles) as server:
        (call,) = calls(server.both(tools=TOOLS, tool_choice={"type": "function", "name": "find"}))
    assert call["name"] == "find"


def test_none_gives_no_call_where_the_model_would_make_one() -> None:
    with responding(BEGGED, chat_format=HarmonyRoles) as server:
        assert calls(server.both(tools=TOOLS, tool_choice="none", max_output_tokens=60)) == []


def test_a_custom_tool_is_bound_by_its_grammar() -> None:
    written = harmony("<|channel|>commentary to=functions.patch<|message|>*** Begin\nxyz\n*** End, and more")
    with responding(written, chat_format=HarmonyRoles) as server:
        (call,) = calls(server.both(tools=[PATCH], tool_choice={"type": "custom", "name": "patch"}))
    assert call["type"] == "custom_tool_call"
    assert call["input"] == "*** Begin\nxyz\n*** End"


@pytest.mark.parametrize(
    ("answer_format", "holds"),
    [
        ({"type": "json_schema", "name": "n", "schema": FLAG}, lambda text: set(json.loads(text)) <= {"a"}),
        (
            {"type": "json_schema", "name": "n", "strict": True, "schema": {"enum": ["yes", "no"]}},
            lambda text: json.loads(text) in ("yes", "no"),
        ),
    ],
)
@pytest.mark.parametrize("chat_format", [RoleTemplate, HarmonyRoles])
def test_prose_becomes_what_was_asked_for(answer_format: Any, holds: Any, chat_format: Any) -> None:
    said: Any = "Well, yes, I think" if chat_format is RoleTemplate else GREETING
    with responding(said, chat_format=chat_format) as server:
        (message,) = server.both(text={"format": answer_format})["output"]
    assert holds(message["content"][0]["text"])


def test_a_json_object_is_all_there_is() -> None:
    with responding('{"n": 1}, I think', chat_format=RoleTemplate) as server:
        (message,) = server.both(text={"format": {"type": "json_object"}})["output"]
    assert json.loads(message["content"][0]["text"]) == {"n": 1}


def test_the_format_binds_the_answer_and_not_the_thinking() -> None:
    answer = harmony(THOUGHT + '<|channel|>final<|message|>{"n":1}<|return|>')
    answer_format = {"type": "json_schema", "name": "n", "schema": {"type": "object", "required": ["n"]}}
    with responding(answer, chat_format=HarmonyRoles) as server:
        thought, message = server.both(text={"format": answer_format})["output"]
    assert thought["content"][0]["text"] == "Let me see."
    assert json.loads(message["content"][0]["text"]) == {"n": 1}


def test_what_cannot_be_enforced_is_refused_before_anything_is_said() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    answer_format = {"type": "json_schema", "name": "n", "strict": True, "schema": schema}
    with responding("x", chat_format=RoleTemplate) as server:
        message = server.refused(text={"format": answer_format}, stream=True)["message"]
    assert "text.format" in message
    assert "not" in message
