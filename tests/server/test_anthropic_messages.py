"""Anthropic's conversations in ours: what becomes of every block, and what is refused, in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.server.anthropic_messages import call_id, read_messages, tool_use_id
from freehold.server.anthropic_request import CountBody, MessagesBody, left_out, read_request, system_of
from freehold.server.body import parse
from freehold.server.errors import ApiError, as_api_error
from freehold.text.chat import Message, ToolCall

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALL = {"type": "tool_use", "id": "toolu_1", "name": "ls", "input": {"path": "."}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "body"}, "title": "T"}


def read(*messages: Any) -> list[Message]:
    return read_messages(body(messages=list(messages)).messages)


def body(**fields: Any) -> MessagesBody:
    given = {"model": "m", "max_tokens": 5, "messages": [user("hi")], **fields}
    return parse(json.dumps(given).encode(), MessagesBody)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def result(content: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        **({} if content is None else {"content": content}),
        **more,
    }


def test_texts_are_joined() -> None:
    assert read(user("one")) == read(user(text("one", cache_control={"type": "ephemeral"}, citations=None)))
    assert read(user(text("one"), text(""), text("two"))) == [Message("user", "one\n\ntwo")]
    assert read({"role": "user", "content": []}) == [Message("user", "")]


def test_neighbours_of_one_role_are_one_turn() -> None:
    messages = read(user("a"), user("b"), assistant("c"), assistant(text("d"), text("e")), user("f"))
    assert messages == [Message("user", "a\n\nb"), Message("assistant", "cde"), Message("user", "f")]


def test_a_turn_cut_into_messages_is_whole_again() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    pieces = [assistant(thought), assistant(text("see")), assistant(CALL)]
    whole = assistant(thought, text("see"), CALL)
    assert read(user("q"), *pieces, user(result("r"))) == read(user("q"), whole, user(result("r")))


def test_thinking_text_and_calls() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "any"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    _, turn, _ = read(user("q"), assistant(thought, hidden, text("I look."), CALL), user(result("r")))
    assert turn == Message("assistant", "I look.", "hm", (ToolCall("ls", '{"path":"."}', "call_1"),))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (result("out"), "out"),
        (result([text("a"), text("b")]), "a\n\nb"),
        (result(), ""),
        (result([]), ""),
        (result(""), ""),
        (result("no such file", is_error=True), "Error: no such file"),
        (result(is_error=True), "Error"),
        (result("fine", is_error=False), "fine"),
        (result([{"type": "tool_reference", "tool_name": "grep"}]), "The tool grep is available."),
        (result([DOCUMENT]), "T\n\nbody"),
    ],
)
def test_tool_results(block: dict[str, Any], expected: str) -> None:
    assert read(assistant(CALL), user(block))[1] == Message("tool", expected, tool_call_id="call_1", name="ls")


def test_results_come_before_what_is_said_beside_them() -> None:
    other = {**CALL, "id": "toolu_2", "name": "cat"}
    answers = user(text("first"), result("one"), result("two", tool_use_id="toolu_2"), text("second"))
    read_back = read(assistant(CALL, other), answers)
    assert [(message.role, message.content, message.name) for message in read_back[1:]] == [
        ("tool", "one", "ls"),
        ("tool", "two", "cat"),
        ("user", "first\n\nsecond", None),
    ]


def test_documents_and_search_results_are_read_as_text() -> None:
    blocks = {"type": "document", "source": {"type": "content", "content": [text("x")]}, "context": "C"}
    found = {"type": "search_result", "source": "https://a", "title": "A", "content": [text("y"), text("z")]}
    assert read(user(DOCUMENT, blocks, found)) == [Message("user", "T\n\nbody\n\nC\n\nx\n\nA\n\nhttps://a\n\ny\n\nz")]


def test_instructions_during_the_conversation_stay_where_they_are() -> None:
    later = {"role": "system", "content": [text("agents: none")]}
    assert [message.role for message in read(user("a"), later, assistant("b"), user("c"), later)] == [
        "user",
        "system",
        "assistant",
        "user",
        "system",
    ]


def test_the_system_prompt_comes_first() -> None:
    for system in ("Be brief.", [text("Be brief.", cache_control={"type": "ephemeral"})]):
        given = body(system=system)
        request = read_request(given, system=system_of(given), namespace="ns")
        assert request.messages == (Message("system", "Be brief."), Message("user", "hi"))
        assert request.namespace == "ns"
    assert read_request(body(), system="", namespace="").messages == (Message("user", "hi"),)


def test_what_is_left_out_is_said() -> None:
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    tool = {"name": "ls", "input_schema": {}, "input_examples": [{"path": "."}]}
    warnings = left_out(body(messages=[user("q"), assistant(hidden), user("q")], tools=[tool]))
    assert ["redacted_thinking" in warnings[0], "input_examples" in warnings[1]] == [True, True]
    assert left_out(body()) == []


def test_a_result_without_its_call_is_refused() -> None:
    for messages in ([user(result("r"))], [user(result("r")), assistant(CALL), user(result("r"))]):
        with pytest.raises(RequestError, match="'toolu_1'; expected the id of a tool_use"):
            read(*messages)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [user(IMAGE)]}, r"messages\[0\].content\[0\] is an object; its type is image; text is all"),
        ({"messages": [assistant(CALL), user(result([IMAGE]))]}, r"content\[0\].content\[0\] .* text is all"),
        ({"messages": [user(PDF)]}, r"content\[0\].*source is an object; its type is base64; text is all"),
        ({"messages": [user({"type": "server_tool_use"})]}, "server_tool_use.*does not match.*'tool_result'"),
        ({"messages": [user(CALL)]}, "tool_use"),
        ({"messages": [assistant(result("r"))]}, "tool_result"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].*'tool'.*'user', 'assistant', 'system'"),
        ({"messages": [user(3)]}, r"messages\[0\].content\[0\]"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content is 3"),
        ({"messages": []}, "messages is a list; list should have at least 1 item"),
        ({"messages": None}, "messages is null"),
        ({"system": [IMAGE]}, r"system\[0\] is an object; its type is image"),
        ({"max_tokens": 0}, "max_tokens is 0; input should be greater than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": None}, "max_tokens is null"),
        ({"temperature": 1.5}, "temperature is 1.5; input should be less than or equal to 1"),
        ({"temperature": "NaN"}, 'temperature is "NaN"'),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences is a list; list should have at most 64 items"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens is 10"),
        ({"thinking": {"type": "banana"}}, 'thinking.type is "banana"'),
        ({"output_config": {"effort": "banana"}}, "'low', 'medium', 'high', 'xhigh' or 'max'"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers is a list"),
        ({"container": "x"}, "container is"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\].*web_search_20250305"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "mcp_toolset"),
        ({"tools": [{"name": "x"}]}, "input_schema is missing"),
    ],
)
def test_refused_fields(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        body(**fields)
    assert raised.value.status == 400


TOOL = {"name": "ls", "input_schema": {"type": "object"}}
FORM = {"type": "json_schema", "schema": {}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [user("q"), assistant("The answer is (")]}, "prefill is not supported"),
        ({"tools": [TOOL, TOOL]}, "a second tool named 'ls'"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "rm"}}, "tool_choice.name is 'rm'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is None"),
        ({"output_format": FORM, "output_config": {"format": FORM}}, "expected one of them"),
    ],
)
def test_refused_combinations(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        read_request(body(**fields), system="", namespace="")
    assert raised.value.status == 400


def test_what_has_no_effect_is_accepted() -> None:
    given = body(
        metadata={"user_id": "u"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
        mcp_servers=[],
        container=None,
        context_management={"edits": []},
        tools=[{**TOOL, "type": "custom", "defer_loading": True, "cache_control": None, "allowed_callers": ["direct"]}],
    )
    assert given.ignored == ["context_management"]
    with pytest.raises(ApiError, match="max_tokens is missing"):
        parse(b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}', MessagesBody)
    assert parse(b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}', CountBody).model == "m"


@given(st.text(max_size=12))
@settings(max_examples=50, deadline=None)
def test_call_ids_come_back(id: str) -> None:
    assert call_id(tool_use_id(f"call_{id}")) == f"call_{id}"
    assert tool_use_id("call_0a") == "toolu_0a"


NAMES = ["model", "max_tokens", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "top_k"]
BLOCK_NAMES = ["type", "role", "content", "text", "id", "tool_use_id", "name", "input", "source", "data", "schema"]
WORDS = st.sampled_from(["text", "tool_use", "tool_result", "document", "image", "user", "system", "any", "toolu_1"])
Near = st.recursive(
    st.none() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(BLOCK_NAMES), inner, max_size=5),
    max_leaves=12,
)
Messages = st.lists(st.fixed_dictionaries({"role": WORDS, "content": st.lists(Near, max_size=3) | Near}), max_size=3)


@given(st.dictionaries(st.sampled_from(NAMES), Near, max_size=3), Messages | Near)
@settings(max_examples=100, deadline=None)
def test_any_body_is_read_or_refused(fields: dict[str, Any], messages: Any) -> None:
    try:
        given = body(**{"messages": messages, **fields})
        request = read_request(given, system=system_of(given), namespace="")
    except (ApiError, RequestError) as error:
        status = as_api_error(error).status
    else:
        status = 200 if request.messages else 0
    assert status in (200, 400)


def test_a_text_as_input_is_taken_as_it_is() -> None:
    _, turn, _ = read(user("q"), assistant({**CALL, "input": "git status"}), user(result("r")))
    assert turn.tool_calls[0].arguments == "git status"
