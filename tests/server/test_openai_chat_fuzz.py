"""Chat Completions on any output at all: no error, and streaming equals not streaming."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
