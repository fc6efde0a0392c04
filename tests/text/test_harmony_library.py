"""The renderer against openai-harmony itself, token for token, on conversations and tools nobody wrote by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.text.chat import Message, Role, ToolCall
from freehold.text.harmony import Harmony
from freehold.text.tokenizer import Tokenizer
from harmony_library import Judge

CONTROLS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"]
TEXT = st.lists(
    st.text(max_size=10)
    | st.sampled_from([*CONTROLS, "Hello, world", " don't", "123456", "\r\n\n", "日本語🙂", "// a\nb"]),
    max_size=4,
).map("".join)
SOME_TEXT = TEXT.filter(bool)
NAMES = st.sampled_from(["get_weather", "now", "web-search", "a.b", "python_like"])
KEYS = st.sampled_from(["city", "unit", "a b", "größe", "$id", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
TYPES = st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null", "strange"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose parts have the shape they should have, mostly; what the library does not know is in them too."""
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=3) | st.integers(),
            "title": TEXT,
            "description": TEXT | st.integers(),
            "examples": st.lists(TEXT | st.integers(), max_size=2),
            "enum": st.lists(TEXT | st.integers(), max_size=3),
            "default": VALUES,
            "nullable": st.booleans() | st.just("true"),
            "items": inner,
            "properties": st.dictionaries(KEYS, inner, max_size=3) | st.just([]),
            "required": st.lists(KEYS | st.integers(), max_size=2) | st.just("city"),
            "oneOf": st.lists(inner, max_size=3) | st.none(),
            "anyOf": st.lists(inner, max_size=2),
            "$ref": st.just("#/properties/city"),
            "minimum": st.integers(),
        },
    )


SCHEMAS = st.recursive(st.booleans() | schemas(st.just({"type": "string"})), schemas, max_leaves=8)
PARAMETERS = schemas(SCHEMAS) | st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(KEYS, SCHEMAS, max_size=4)},
    optional={"required": st.lists(KEYS, max_size=2)},
)


@st.composite
def tools(draw: st.DrawFn) -> list[dict[str, Any]]:
    functions = st.fixed_dictionaries({"name": NAMES}, optional={"description": TEXT, "parameters": PARAMETERS})
    return [{"type": "function", "function": function} for function in draw(st.lists(functions, max_size=2))]


OPTIONS = st.fixed_dictionaries(
    {
        "reasoning_effort": st.sampled_from(["low", "medium", "high"]),
        "current_date": st.dates().map(str) | st.just(""),
        "model_identity": TEXT,
        "knowledge_cutoff": st.just("2024-06") | st.just(""),
        "builtin_tools": st.lists(st.sampled_from(["browser", "python"]), unique=True),
    }
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Instructions, then turns of a user, steps with calls and their results, and perhaps an answer."""
    instructing: st.SearchStrategy[Role] = st.sampled_from(["system", "developer"])
    messages = [Message(draw(instructing), draw(SOME_TEXT)) for _ in range(draw(st.integers(0, 2)))]
    for turn in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXT), name=draw(st.none() | st.just("ann"))))
        for step in range(draw(st.integers(0, 2))):
            names = draw(st.lists(NAMES | st.sampled_from(["python", "browser.search"]), min_size=1, max_size=2))
            calls = tuple(ToolCall(name, draw(TEXT), id=f"{turn}.{step}.{i}") for i, name in enumerate(names))
            messages.append(Message("assistant", draw(TEXT), draw(st.none() | TEXT), calls))
            for call in calls:
                is_builtin = call.name in ("python", "browser.search")
                author = call.name if is_builtin else f"functions.{call.name}"
                messages.append(Message("tool", draw(TEXT), tool_call_id=call.id, name=author))
        if draw(st.booleans()):
            messages.append(Message("assistant", draw(SOME_TEXT), draw(st.none() | TEXT)))
    return messages


@pytest.fixture(scope="module")
def harmony(harmony_tokenizer: Tokenizer) -> Harmony:
    return Harmony(harmony_tokenizer)


@settings(max_examples=80, deadline=None)
@given(conversations(), tools(), OPTIONS)
def test_conversations(
    harmony: Harmony, judge: Judge, messages: list[Message], offered: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    ids = harmony.render(messages, tools=offered, **options)
    assert ids == judge.ids(judge.prompt(messages, offered, options))


@settings(max_examples=120, deadline=None)
@given(PARAMETERS)
def test_declarations(harmony: Harmony, judge: Judge, parameters: dict[str, Any]) -> None:
    offered = [{"type": "function", "function": {"name": "f", "description": "What it does", "parameters": parameters}}]
    options: dict[str, Any] = {"reasoning_effort": "low", "current_date": "", "builtin_tools": []}
    options |= {"model_identity": "", "knowledge_cutoff": ""}
    expected = judge.ids(judge.prompt([], offered, options))
    assert harmony.render([], tools=offered, **options) == expected


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_text(harmony_tokenizer: Tokenizer, judge: Judge, text: str) -> None:
    assert harmony_tokenizer.encode(text) == judge.encode(text)
