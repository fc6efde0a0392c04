"""Messages from hostile dictionaries, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.text.answer import Event
from freehold.text.chat import ROLES, Message, ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_plain_message() -> None:
    message = Message.from_dict({"role": "user", "content": "Hello"})
    assert message == Message(role="user", content="Hello")
    assert message.to_dict() == {"role": "user", "content": "Hello"}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert Message.from_dict({"role": "user", "content": parts}).content == "Hello"


def test_tool_call_round_trip() -> None:
    data = {
        "role": "assistant",
        "content": "",
        "reasoning": "look it up",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        ],
    }
    message = Message.from_dict(data)
    assert message.tool_calls == (ToolCall("weather", '{"city": "Oslo"}', "c1"),)
    assert message.to_dict() == data


def test_tool_arguments_may_be_an_object() -> None:
    call = ToolCall.from_dict({"function": {"name": "f", "arguments": {"ü": 1}}})
    assert call == ToolCall("f", '{"ü": 1}')


def test_template_shape_has_arguments_as_an_object_and_reasoning_under_both_names() -> None:
    message = Message("assistant", "", reasoning="r", tool_calls=(ToolCall("f", '{"a": 1}'), ToolCall("g", "{broken")))
    shaped = message.to_template()
    assert shaped["reasoning_content"] == shaped["thinking"] == "r"
    assert [call["function"]["arguments"] for call in shaped["tool_calls"]] == [{"a": 1}, "{broken"]


def test_tool_result_keeps_its_call() -> None:
    data = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "weather"}
    assert Message.from_dict(data).to_dict() == data


def test_empty_unknown_keys_are_harmless() -> None:
    data: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
    }
    assert Message.from_dict(data) == Message("assistant", "")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("hi", "message is 'hi'"),
        ({"content": "hi"}, "message.role is None"),
        ({"role": "wizard", "content": "hi"}, "message.role is 'wizard'"),
        ({"role": ["user"], "content": "hi"}, "message.role is a list"),
        ({"role": "user"}, "message.content is None"),
        ({"role": "user", "content": 3}, "message.content is 3"),
        ({"role": "user", "content": ["hi"]}, r"message.content\[0\]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "no images"),
        ({"role": "user", "content": [{"type": "text"}]}, r"message.content\[0\].text"),
        ({"role": "user", "content": "hi", "images": ["x"]}, "'images'"),
        ({"role": "user", "content": "hi", "reasoning": "x"}, "only assistant"),
        ({"role": "user", "content": "hi", "name": 3}, "message.name"),
        ({"role": "assistant", "content": "", "tool_calls": {}}, "message.tool_calls is a dict"),
        ({"role": "assistant", "content": "", "tool_calls": [{"type": "mystery"}]}, r"tool_calls\[0\].type"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{}"}}]}, "function.name"),
        ({"role": "assistant", "content": "", "reasoning": "a", "thinking": "b"}, "different texts"),
    ],
)
def test_refused_with_its_place(data: Any, place: str) -> None:
    with pytest.raises(RequestError, match=place):
        Message.from_dict(data)


def test_constructor_refuses_an_unknown_role() -> None:
    with pytest.raises(RequestError, match="role is 'root'"):
        Message("root", "hi")  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from([*ROLES, "x"]))
def test_anything_gives_a_message_or_a_request_error(value: Any, role: str) -> None:
    for data in (value, {"role": role, "content": value}, {"role": role, "content": "x", "tool_calls": value}):
        try:
            message = Message.from_dict(data)
        except RequestError:
            continue
        assert Message.from_dict(message.to_dict()) == message


def test_events_are_plain_values() -> None:
    assert Event("text", "a") == Event(kind="text", text="a")
    assert Event("finish", finish_reason="stop", n_generated=3).n_generated == 3
