"""Chat Completions and Completions on anything at all: any output is answered, any body answered or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server.body import parse
from freehold.server.errors import ApiError
from freehold.server.openai_chat import ChatBody, read_request
from freehold.server.openai_completions import CompletionBody, read_requests
from openai_scripted import Talker, talking
from scripted_model import VOCAB, harmony

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SNIPPETS = (
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>", "<|im_end|>"),
    *(
        "assistant",
        "analysis",
        "final",
        "commentary",
        " to=functions.f",
        " to=",
        "json",
        " ",
        "é",
        "[",
        '{"a":1}',
        "user",
    ),
)
outputs = st.one_of(
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
    st.lists(st.sampled_from(SNIPPETS), max_size=12).map(lambda words: harmony("".join(words))),
)


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    with talking([]) as talker:
        yield talker


@given(outputs, st.integers(1, 80), st.sampled_from([(), ("a",), ("l", "an")]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_streaming_equals_not_streaming(
    talker: Talker, ids: list[int], max_tokens: int, stop: tuple[str, ...], logprobs: bool
) -> None:
    talker.model.script.answer = ids
    answer = talker.both(tools=TOOLS, max_tokens=max_tokens, stop=list(stop), logprobs=logprobs)
    (choice,) = answer["choices"]
    message = choice["message"]
    assert choice["finish_reason"] in ("stop", "length", "tool_calls")
    assert "tool_calls" in message or choice["finish_reason"] != "tool_calls"
    assert message["content"] is not None or message.keys() & {"reasoning", "tool_calls"}
    assert answer["usage"]["completion_tokens"] <= max_tokens
    assert not any(text in (message["content"] or "") for text in stop)


words = st.one_of(
    st.sampled_from(["function", "custom", "grammar", "json_schema", "allowed_tools", "text", "required", "assistant"]),
    st.text(max_size=4),
)
keys = st.sampled_from(
    [
        *("type", "name", "function", "custom", "format", "grammar", "schema", "json_schema", "tools", "mode", "role"),
        *("content", "tool_calls", "arguments", "input", "refusal", "strict", "parameters", "text", "id"),
        "allowed_tools",
    ]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*ChatBody.model_fields, "functions", "audio"]), values, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_body_of_a_chat_is_read_or_refused(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], **fields}
    with suppress(ApiError):
        read_request(parse(json.dumps(body).encode(), ChatBody), "")


@given(st.lists(st.dictionaries(keys, values, max_size=4), max_size=2), values, st.lists(values, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_tools_and_messages_are_read_or_refused(tools: Any, choice: Any, messages: Any) -> None:
    body = {"model": "m", "messages": messages, "tools": tools, "tool_choice": choice, "response_format": choice}
    with suppress(ApiError):
        read_request(parse(json.dumps(body).encode(), ChatBody), "")


@given(st.dictionaries(st.sampled_from([*CompletionBody.model_fields, "suffix"]), values, max_size=4), values)
@settings(max_examples=100, deadline=None)
def test_any_body_of_a_completion_is_read_or_refused(fields: dict[str, Any], prompt: Any) -> None:
    with suppress(ApiError):
        read_requests(parse(json.dumps({"model": "m", "prompt": prompt, **fields}).encode(), CompletionBody), "")
