"""Chat Completions: what a request binds its answer to holds, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_scripted import prefers, says, talking, talking_models
from scripted_model import HarmonyRoles, RoleTemplate, ScriptedLocalModel, harmony

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("look", "find")]
GREETING = harmony("<|channel|>final<|message|>Hello, how are you?<|return|>")
BEGGED, SETTLED = (
    harmony(f"<|channel|>commentary to=functions.{name} json<|message|>{{}}<|call|>") for name in ("look", "find")
)
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALLS = [
    harmony(f'{THOUGHT}<|channel|>commentary to=functions.{name} json<|message|>{{"a":true}}<|call|>')
    for name in ("look", "find")
]


def bound(*answers: Any, chat_format: Any = HarmonyRoles) -> ScriptedLocalModel:
    """A model that would rather say the first."""
    model = says("", chat_format=chat_format)
    prefers(model, *answers)
    return model


def called(model: ScriptedLocalModel, **body: Any) -> list[str]:
    """The names of the tools that an answer which ends in calls calls, streamed or not."""
    with talking_models({"m": model}) as talker:
        (choice,) = talker.both(tools=TOOLS, **body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        assert set(json.loads(call["function"]["arguments"])) <= {"a"}
    return [call["function"]["name"] for call in choice["message"]["tool_calls"]]


def test_required_gives_a_call_where_the_model_would_greet() -> None:
    assert called(bound(GREETING, *CALLS), tool_choice="required") == ["look"]


def test_a_named_tool_is_the_one_that_is_called() -> None:
    named = {"type": "function", "function": {"name": "find"}}
    assert called(bound(GREETING, *CALLS), tool_choice=named) == ["find"]
    assert called(bound(BEGGED, SETTLED), tool_choice=named) == ["find"]


def test_allowed_tools_are_the_only_ones() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}}
    assert called(bound(BEGGED, SETTLED), tool_choice=allowed) == ["find"]


def test_none_gives_no_call_where_the_model_would_make_one() -> None:
    words = harmony("<|channel|>commentary<|message|>No.<|end|><|start|>assistant")
    with talking_models({"m": bound(BEGGED, words + BEGGED, words + GREETING)}) as talker:
        (choice,) = talker.both(tools=TOOLS, tool_choice="none")["choices"]
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("No.")


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        ({"type": "json_object"}, '{"a":1}'),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}, '{"a":true}'),
        ({"type": "regex", "regex": "a{3}b"}, "aaab"),
        ({"type": "grammar", "grammar": 'start: "x" "y"'}, "xy"),
    ],
)
@pytest.mark.parametrize("chat_format", [RoleTemplate, HarmonyRoles])
def test_prose_becomes_what_was_asked_for(response_format: Any, text: str, chat_format: Any) -> None:
    final = harmony(f"<|channel|>final<|message|>{text}<|return|>")
    answers = ("Well, yes", text) if chat_format is RoleTemplate else (GREETING, final)
    with talking_models({"m": bound(*answers, chat_format=chat_format)}) as talker:
        (choice,) = talker.both(response_format=response_format)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}


def test_what_cannot_be_enforced_is_refused_before_anything_is_said() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    with talking("x", chat_format=RoleTemplate) as talker:
        response = talker.post(response_format=response_format, stream=True)
    assert response.status_code == 400
    assert "response_format" in response.json()["error"]["message"]
    assert "not" in response.json()["error"]["message"]
