"""Whatever ids a model says, the Responses API answers, and the same streamed and not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from responses_scripted import WEATHER, Responder, responding
from scripted_model import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, SPLIT, START, VOCAB, harmony

PATCH = {"type": "custom", "name": "patch"}
WORDS = [
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to=functions.get_weather",
    " to=functions.patch",
    '{"a":1}',
    "é",
]
CONTROLS = [START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL, SPLIT]
PIECES = st.sampled_from([harmony(word) for word in WORDS]) | st.sampled_from(CONTROLS).map(lambda id: [id])
OUTPUTS = st.lists(PIECES | st.integers(0, VOCAB - 1).map(lambda id: [id]), max_size=16).map(
    lambda pieces: [id for piece in pieces for id in piece]
)


@pytest.fixture(scope="module")
def server() -> Iterator[Responder]:
    with responding([], context=120) as responder:
        yield responder


@settings(max_examples=30, deadline=None)
@given(OUTPUTS, st.none() | st.integers(1, 40))
def test_streaming_equals_not_streaming(server: Responder, ids: list[int], limit: int | None) -> None:
    server.model.script.answer = ids
    body: dict[str, Any] = {} if limit is None else {"max_output_tokens": limit}
    response = server.both(tools=[WEATHER, PATCH], include=["message.output_text.logprobs"], **body)
    for item in response["output"]:
        for part in item.get("content", ()):
            assert isinstance(part["text"], str)
    assert response["usage"]["output_tokens"] <= (limit or 120)
    if response["status"] == "completed":
        assert any(item["type"] != "reasoning" for item in response["output"])
