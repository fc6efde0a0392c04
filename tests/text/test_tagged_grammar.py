"""What binds answers with thoughts and calls: whatever the grammar lets through, the parser reads, and it is meant."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import pytest

from answer_styles import TEMPLATES, TOOLS, summed, template, tokenizer
from freehold.errors import RequestError, UnsupportedError
from freehold.text.chat import Message
from freehold.text.grammar import Grammars
from freehold.text.request import ChatRequest, Grammar, NamedTool
from freehold.text.templates import ChatTemplate
from grammar_walks import allowed, follows

ASK = (Message("user", "?"),)
OK = Grammar(
    "json_schema",
    {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False},
)
CALLS = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=%s>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>%s\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.%s:0<|tool_call_argument_begin|>"
    '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>',
    "deepseek_v3": '[calls begin][call begin]function[sep]%s\n```json\n{"city": "Oslo"}\n```[call end][calls end]',
    "deepseek_v3_1": '[calls begin][call begin]%s[sep]{"city": "Oslo"}[call end][calls end]',
    "llama": '{"name": "%s", "parameters": {"city": "Oslo"}}',
}
CALLS["qwen3"] = CALLS["r1"] = CALLS["hermes"]
STYLES = [(name, spelled) for name in sorted(TEMPLATES) for spelled in (False, True)]


def call_of(name: str, tool: str = "get_weather") -> str:
    text = CALLS[name] % tool
    for word in ("calls begin", "calls end", "call begin", "call end", "sep"):
        text = text.replace(f"[{word}]", f"<\uff5ctool\u2581{word.replace(' ', chr(0x2581))}\uff5c>")
    return text


@cache
def grammars(spelled: bool) -> Grammars:
    marks = tokenizer(spelled=spelled)
    return Grammars(marks, frozenset(marks.eos_ids), marks.vocab_size)


def asked(name: str, spelled: bool, *, options: dict[str, Any] | None = None, **request: Any) -> tuple[str, list[int]]:
    """The grammar, and the prompt."""
    wanted = ChatRequest(ASK, **request)
    prompt = template(name, spelled=spelled).render(ASK, tools=wanted.tools or None, **(options or {}))
    source = template(name, spelled=spelled).grammar(wanted, prompt)
    assert source is not None
    return source, prompt


def may(name: str, spelled: bool, *texts: str, **request: Any) -> list[bool]:
    """Whether each text may be the beginning of an answer."""
    source, _ = asked(name, spelled, **request)
    marks = tokenizer(spelled=spelled)
    return [follows(source, marks.encode(text, special=True), grammars(spelled)) for text in texts]


def may_end(source: str, text: str, spelled: bool) -> bool:
    marks = tokenizer(spelled=spelled)
    constraint = grammars(spelled).compile(source)
    ids = marks.encode(text, special=True)
    while ids:
        forced = constraint.accept(ids.pop(0))
        assert list(forced) == ids[: len(forced)]
        del ids[: len(forced)]
    return not marks.eos_ids.isdisjoint(allowed(constraint, marks.vocab_size))


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"qwen3_coder"}))  # whose values only a closing tag ends
@pytest.mark.parametrize("choice", ["required", NamedTool("get_weather")])
def test_a_call_that_must_come_comes_and_fits_its_schema(name: str, choice: Any) -> None:
    source, prompt = asked(name, False, tools=TOOLS, tool_choice=choice)
    for seed in range(3):
        parser = template(name).parser(tools=TOOLS, prompt=prompt)
        answer = summed(parser, said_under(source, seed))
        assert (answer.text, answer.n_recoveries) == ("", 0)
        assert answer.calls
        for tool, arguments in answer.calls:
            read = json.loads(arguments)
            assert tool == "get_weather" or (tool, read, choice) == ("now", {}, "required")
            assert isinstance(read.get("city", "") if tool == "now" else read["city"], str)
            assert isinstance(read.get("days", 1), int)


def said_under(source: str, seed: int) -> list[int]:
    """What is said at random, until the grammar may end."""
    marks = tokenizer()
    closing = {*marks.special_ids.values(), *(id for text in ("}", "]", '"') for id in marks.encode(text))}
    letters = {id for text in ("a", "b", "1", " ") for id in marks.encode(text)}
    constraint, random, said = grammars(False).compile(source), Random(seed), list[int]()
    while marks.eos_ids.isdisjoint(ids := allowed(constraint, marks.vocab_size)):
        closers = [id for id in ids if id in closing]
        id = random.choice(closers if closers and random.random() < 0.3 else [id for id in ids if id in letters] or ids)
        said += [id, *constraint.accept(id)]
        assert len(said) < 2000
    return said


@pytest.mark.parametrize(("name", "spelled"), STYLES)
def test_words_and_calls_may_come_where_both_are_allowed(name: str, spelled: bool) -> None:
    call, other = call_of(name), call_of(name, "other")
    thought = "so\n</think>" if name == "r1" else ""
    assert may(name, spelled, f"{thought}Hi", thought + call, thought + other, tools=TOOLS) == [True, True, False]
    before = "" if name == "llama" else "Let me see.\n"
    source, _ = asked(name, spelled, tools=TOOLS)
    assert may_end(source, thought + before + call, spelled)
    assert may_end(source, f"{thought}Hi", spelled)


@pytest.mark.parametrize(("name", "spelled"), STYLES)
def test_no_call_may_come_where_none_is_wanted(name: str, spelled: bool) -> None:
    thought = "so\n</think>" if name == "r1" else ""
    found = may(name, spelled, f"{thought}Hi", thought + call_of(name), tools=TOOLS, tool_choice="none")
    assert found == [True, False]


@pytest.mark.parametrize(("name", "spelled"), STYLES)
def test_one_call_where_no_others_may_follow(name: str, spelled: bool) -> None:
    thought = "so\n</think>" if name == "r1" else ""
    source, _ = asked(name, spelled, tools=TOOLS, tool_choice="required", parallel_calls=False)
    assert may_end(source, thought + call_of(name), spelled)
    assert not follows(
        source,
        tokenizer(spelled=spelled).encode(thought + call_of(name) + "\n" + call_of(name), special=True),
        grammars(spelled),
    )


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "texts", "expected"),
    [
        # The model may think, must finish what the prompt began, or has been told not to.
        ("qwen3", {}, ('{"ok":true}', '<think>\na{\n</think>\n\n{"ok":true}', "a"), [True, True, False]),
        ("qwen3", {"enable_thinking": False}, ('{"ok":true}', "<think>", "\n\n\n"), [True, False, False]),
        ("r1", {}, ('a {"\n</think>\n\n{"ok":', "a</think>\n\n\n"), [True, False]),
        ("glm", {}, ('\n<think>a</think>\n{"ok":true}', '{"ok":true}'), [True, True]),
        ("deepseek_v3_1", {}, ('{"ok":true}', "<think>"), [True, False]),
        ("deepseek_v3_1", {"thinking": True}, ('a</think>{"ok":true}', "</think>x"), [True, False]),
        ("hermes", {}, ('{"ok":true}', "<think>"), [True, False]),
    ],
)
def test_a_schema_binds_the_answer_and_not_the_thought(
    name: str, options: dict[str, Any], texts: tuple[str, ...], expected: list[bool], spelled: bool
) -> None:
    assert may(name, spelled, *texts, answer=OK, options=options) == expected


def test_a_call_may_come_instead_of_a_bound_answer_and_words_may_not() -> None:
    found = may("qwen3", False, call_of("qwen3"), '{"ok":true}', "Hi " + call_of("qwen3"), answer=OK, tools=TOOLS)
    assert found == [True, True, False]


def test_calls_are_left_to_the_model_where_that_is_asked_for() -> None:
    assert template("qwen3").grammar(ChatRequest(ASK, tools=TOOLS, enforce=False)) is None
    assert template("qwen3").grammar(ChatRequest(ASK)) is None
    wrong = CALLS["hermes"].replace("Oslo", "").replace("city", "town") % "get_weather"
    assert may("qwen3", False, wrong, tools=TOOLS, tool_choice="required", enforce=False) == [True]
    assert may("qwen3", False, wrong, tools=TOOLS, tool_choice="required") == [False]


@pytest.mark.parametrize("name", ["glm", "qwen3_coder"])
def test_pairs_follow_the_schema(name: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["a", "b"]},
            "place": {"$ref": "#/$defs/place"},
            "many": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["place"],
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
    }
    tools = ({"type": "function", "function": {"name": "f", "parameters": schema}},)
    pair = (
        "<arg_key>%s</arg_key>\n<arg_value>%s</arg_value>\n" if name == "glm" else "<parameter=%s>\n%s\n</parameter>\n"
    )
    head = "<tool_call>f\n" if name == "glm" else "<tool_call>\n<function=f>\n"
    texts = [pair % ("kind", "a"), pair % ("kind", "c"), pair % ("place", '{"x":1}'), pair % ("place", "{}"), "</"]
    found = may(name, False, *(head + text for text in texts), tools=tools, tool_choice="required")
    assert found == [True, False, True, False, False]


def test_what_no_tool_meets_is_refused() -> None:
    with pytest.raises(RequestError, match="tool_choice names 'other'; expected a tool that is offered: get_weather"):
        template("qwen3").grammar(ChatRequest(ASK, tools=TOOLS, tool_choice=NamedTool("other")))
    with pytest.raises(RequestError, match="no tools are offered"):
        template("qwen3").grammar(ChatRequest(ASK, tool_choice="required"))
    bad = {"type": "object", "properties": {"a": {"not": {}}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad, "strict": True}}
    with pytest.raises(RequestError, match=r"^tools\[0\] \(f\)\.parameters\.a"):
        template("glm").grammar(ChatRequest(ASK, tools=(tool,), tool_choice="required"))
    plain = TEMPLATES["hermes"].replace("<tool_call>", "").replace("</tool_call>", "")
    with pytest.raises(UnsupportedError, match="how this model writes calls is not known"):
        ChatTemplate(plain, tokenizer(spelled=True)).grammar(ChatRequest(ASK, tools=TOOLS, tool_choice="required"))
