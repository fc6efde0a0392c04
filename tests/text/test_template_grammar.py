"""Chat templates: what binds an answer that is all text, and which tool choices such a model cannot meet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.errors import RequestError, UnsupportedError
from freehold.text.request import ChatRequest, Grammar, NamedTool
from freehold.text.templates import ChatTemplate
from grammar_walks import BYTES, preferring, text_of, walk

TOOL = {"type": "function", "function": {"name": "f"}}
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def source(template: str = PLAIN, **request: Any) -> str | None:
    return ChatTemplate(template, BYTES).grammar(ChatRequest((), **request))


def test_a_model_that_would_rather_write_prose_writes_what_is_asked_for() -> None:
    bound = source(answer=Grammar("json_schema", SCHEMA))
    assert bound is not None
    assert json.loads(text_of(walk(bound, preferring(*"Sure, here you go")))) in ({"ok": True}, {"ok": False})


def test_without_a_grammar_nothing_is_bound() -> None:
    assert source() is None
    assert source(WITH_TOOLS, tools=(TOOL,)) is None
    assert source(PLAIN, tools=(TOOL,), tool_choice="none") is None


@pytest.mark.parametrize("template", [PLAIN, WITH_TOOLS])
@pytest.mark.parametrize("choice", ["required", NamedTool("f")])
def test_a_call_that_nobody_could_read_is_not_asked_for(template: str, choice: Any) -> None:
    with pytest.raises(UnsupportedError, match="set tool_choice to 'auto' or 'none'"):
        source(template, tools=(TOOL,), tool_choice=choice)


def test_tools_that_the_model_would_not_see_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no place for tools"):
        source(PLAIN, tools=(TOOL,))


def test_a_grammar_that_cannot_be_enforced_is_refused() -> None:
    with pytest.raises(RequestError, match="items: the JSON Schema keyword 'not'"):
        source(answer=Grammar("json_schema", {"items": {"not": {}}}))
