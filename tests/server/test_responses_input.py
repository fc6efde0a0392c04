"""Items as a conversation: which go together, what is refused, and that one renderer writes the prompts of all APIs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from freehold.server.errors import ApiError
from freehold.server.responses_input import read_items
from freehold.server.responses_items import InputItem, item_id, new_turn
from freehold.text.chat import Message, ToolCall
from responses_scripted import FINAL, WEATHER, Responder, responding
from scripted_model import RealHarmony, harmony

ITEM: TypeAdapter[Any] = TypeAdapter(InputItem)


@pytest.fixture(scope="module")
def shared_server() -> Any:
    with responding("x") as server:
        yield server


def read(*items: dict[str, Any], warnings: list[str] | None = None) -> list[Message]:
    return read_items([ITEM.validate_python(item) for item in items], [] if warnings is None else warnings)


def thought(text: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "summary": [], "content": content, "encrypted_content": None, **fields}


def said(text: str, role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text, **fields}


def called(call_id: str, name: str = "f", arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **fields}


def output(call_id: str, result: Any = "5") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": result}


def test_one_turn_is_one_message() -> None:
    items = [thought("R"), said("I will look."), called("c1"), called("c2"), output("c1"), output("c2", "6")]
    assert read(said("?", "user"), *items) == [
        Message("user", "?"),
        Message("assistant", "I will look.", "R", (ToolCall("f", "{}", "c1"), ToolCall("f", "{}", "c2"))),
        Message("tool", "5", tool_call_id="c1"),
        Message("tool", "6", tool_call_id="c2"),
    ]


def test_turns_that_follow_each_other_stay_apart() -> None:
    assert read(said("A"), said("B"), thought("R"), said("C")) == [
        Message("assistant", "A"),
        Message("assistant", "B"),
        Message("assistant", "C", "R"),
    ]


def test_items_of_one_of_our_answers_are_one_turn_in_whatever_order() -> None:
    turn, other = new_turn(), new_turn()
    preamble, second = said("P", id=item_id("msg", turn, 0)), thought("R", id=item_id("rs", turn, 1))
    last = said("\n\nQ", id=item_id("msg", turn, 2))
    assert read(preamble, second, last, called("c", id=item_id("fc", turn, 3))) == [
        Message("assistant", "P\n\nQ", "R", (ToolCall("f", "{}", "c"),))
    ]
    assert len(read(preamble, called("c", id=item_id("fc", other, 0)))) == 2


def test_content_comes_as_text_or_in_parts() -> None:
    parts = [{"type": "output_text", "text": "A", "annotations": []}, {"type": "refusal", "refusal": "B"}]
    assert read({**said(""), "content": parts}) == [Message("assistant", "AB")]
    assert read({"role": "user", "content": [{"type": "input_text", "text": "x"}]}) == [Message("user", "x")]
    result = [{"type": "input_text", "text": "5"}, {"type": "input_text", "text": "6"}]
    assert read(called("c"), output("c", result))[1].content == "56"


def test_a_model_is_told_of_images_it_cannot_see() -> None:
    warnings: list[str] = []
    parts = [{"type": "input_text", "text": "Here: "}, {"type": "input_image", "image_url": "data:image/png;base64,AA"}]
    result = read(called("c"), output("c", parts), warnings=warnings)[1]
    assert result.content == "Here: [an image, left out: this model reads text only]"
    assert "images" in warnings[0]


def test_reasoning_is_its_content_or_else_its_summary() -> None:
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in "ST"]}
    assert read(summary) == [Message("assistant", "", "S\n\nT")]
    assert read({**thought("R"), **{"summary": summary["summary"]}}) == [Message("assistant", "", "R")]


def test_custom_calls_are_calls() -> None:
    call = {
        "type": "custom_tool_call",
        "call_id": "c",
        "name": "patch",
        "input": "+x",
        "id": "ctc_1",
        "status": "completed",
    }
    result = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
    assert read(call, result) == [
        Message("assistant", "", None, (ToolCall("patch", "+x", "c", True),)),
        Message("tool", "done", tool_call_id="c"),
    ]


@pytest.mark.parametrize(
    ("namespace", "name"), [("agents", "agents__f"), ("mcp__x__", "mcp__x__f"), ("functions", "f")]
)
def test_a_call_in_a_namespace_has_the_name_the_model_knows(namespace: str, name: str) -> None:
    assert read(called("c", namespace=namespace))[0].tool_calls[0].name == name


def test_what_nobody_can_read_is_left_out_with_a_word() -> None:
    warnings: list[str] = []
    secret = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    assert read(secret, search, secret, said("A"), warnings=warnings) == [Message("assistant", "A")]
    assert len(warnings) == 2
    assert "encrypted" in warnings[0]
    assert "web_search_call" in warnings[1]


def test_the_output_of_a_call_that_is_not_there_is_refused() -> None:
    with pytest.raises(ApiError, match="'c9'"):
        read(called("c1"), output("c9"))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"type": "computer_call"}], "input[0] is an object; its type is computer_call"),
        ([said("x", "user"), {"type": "mcp_call"}], "input[1]"),
        ([{"type": "compaction", "encrypted_content": "x"}], "compaction"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "text is all"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}], "text is all"),
        ([called("c"), output("c", [{"type": "input_file", "file_id": "x"}])], "text is all"),
        ([{"role": "user"}], "is missing"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([called("")], "input[0].call_id"),
        ([{"type": 5}], "input[0].type is 5"),
        (["x"], "input[0]"),
        (5, "input is 5"),
    ],
)
def test_what_cannot_be_read_is_named(shared_server: Responder, items: Any, words: str) -> None:
    assert words in shared_server.refused(input=items)["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role"]), inner),
    max_leaves=6,
)
TYPES = st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "item_reference", "x"])
KEYS = st.sampled_from(["role", "content", "summary", "call_id", "name", "arguments", "output", "id", "input"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(KEYS, JSON).flatmap(lambda d: TYPES.map(lambda kind: {**d, "type": kind})), max_size=4))
def test_no_item_is_a_failure_of_ours(shared_server: Responder, items: list[Any]) -> None:
    response = shared_server.post(input=items, store=False)
    assert response.status_code in (200, 400, 404), response.text


ANSWERED = [thought("R1"), called("c1", "get_weather", '{"city":"Rome"}'), output("c1", "sunny")]
ANSWERED_IN_CHAT: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "content": None,
        "reasoning": "R1",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([said("?", "user")], [{"role": "user", "content": "?"}]),
        ([said("?", "user"), *ANSWERED], [{"role": "user", "content": "?"}, *ANSWERED_IN_CHAT]),
        (
            [said("?", "user"), *ANSWERED, thought("R2"), said("F"), said("!", "user")],
            [
                {"role": "user", "content": "?"},
                *ANSWERED_IN_CHAT,
                {"role": "assistant", "content": "F", "reasoning": "R2"},
                {"role": "user", "content": "!"},
            ],
        ),
        (
            [said("D", "developer"), said("?", "user"), said("<|channel|>final<|message|>F"), said("!", "user")],
            [
                {"role": "developer", "content": "D"},
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "<|channel|>final<|message|>F"},
                {"role": "user", "content": "!"},
            ],
        ),
    ],
)
def test_one_renderer_writes_the_prompt_of_both_apis(items: list[Any], messages: list[Any]) -> None:
    with responding(harmony(FINAL), chat_format=RealHarmony, context=2000) as server:
        body: dict[str, Any] = {"instructions": "Be brief.", "tools": [WEATHER], "reasoning": {"effort": "high"}}
        server.whole(input=items, max_output_tokens=1, **body)
        prompt = server.model.chat_format.prompt  # type: ignore[union-attr]
        nested = {"type": "function", "function": {key: value for key, value in WEATHER.items() if key != "type"}}
        body = {"model": "m", "tools": [nested], "reasoning_effort": "high", "max_tokens": 1}
        body["messages"] = [{"role": "system", "content": "Be brief."}, *messages]
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200
        assert server.model.chat_format.prompt == prompt  # type: ignore[union-attr]
    text = bytes(id for id in prompt if id < 256).decode()
    finished = any(item.get("content") == "F" for item in items)
    assert ("R1" in text) == (len(items) > 1 and items[1].get("type") == "reasoning" and not finished)
