"""Harmony turns under a grammar: whatever is said reads back without a repair, and does what the request allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import jsonschema
import pytest

from freehold.errors import RequestError
from freehold.text.harmony import Harmony
from freehold.text.harmony_parser import HarmonyParser
from freehold.text.harmony_replay import Replay
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.request import ChatRequest, Grammar, NamedTool
from freehold.text.tokenizer import Tokenizer
from grammar_walks import BYTES, ENDS, GRAMMARS, Choice, allowed, at_random, follows, preferring, walk
from harmony_answers import events_of
from scripted_model import CALL, CHANNEL, CONSTRAIN, HARMONY, MESSAGE, RETURN, harmony

STOCK = {
    "type": "object",
    "properties": {"sku": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["sku"],
    "additionalProperties": False,
}
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "get_stock", "parameters": STOCK}},
    {"type": "function", "function": {"name": "get_stocks"}},  # its name begins with the other's
    {
        "type": "custom",
        "custom": {
            "name": "patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*" /[a-z]+/'},
        },
    },
    {"type": "custom", "custom": {"name": "say"}},
)
NUMBER = Grammar("json_schema", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
BUILTINS = {"builtin_tools": ["browser", "python"]}
FORMAT = Harmony(BYTES)


def request(tools: Sequence[Any] = TOOLS, **more: Any) -> ChatRequest:
    return ChatRequest((), tuple(tools), **more)


def turn(asked: ChatRequest, choose: Choice) -> tuple[str, str, list[tuple[str, str]], list[int]]:
    """Text, reasoning, calls and ids of a turn, which must be well-formed in every way."""
    source = FORMAT.grammar(asked)
    assert source is not None
    ids = walk(source, choose)
    parser = HarmonyParser(BYTES, HARMONY, asked.tools)
    text, reasoning, calls = "", "", list[list[str]]()
    for event in events_of(parser, ids):
        if event.kind == "tool_call":
            calls += [[event.call.name, ""]] if event.call else []
            calls[-1][1] += event.text
        text += event.text if event.kind == "text" else ""
        reasoning += event.text if event.kind == "reasoning" else ""
    assert parser.n_recoveries == 0
    assert Replay(BYTES, HARMONY).split(ids) is not None
    return text, reasoning, [(name, arguments) for name, arguments in calls], ids


def check_call(name: str, arguments: str) -> None:
    if name == "get_stock":
        jsonschema.validate(json.loads(arguments), STOCK)
    elif name == "get_stocks":
        assert json.loads(arguments) == {}
    elif name == "patch":
        assert arguments[0] == "*"
        assert arguments[1:].isalpha()
    else:
        assert name in ("say", "python", "browser.search", "browser.open", "browser.find")
    if name == "browser.search":
        assert "query" in json.loads(arguments)


@pytest.mark.parametrize("options", [{}, BUILTINS])
def test_calls_go_to_offered_tools_with_arguments_that_fit(options: dict[str, Any]) -> None:
    called, answered = set(), 0
    for seed in range(150 if options else 60):
        _, _, calls, ids = turn(request(template_options=options), at_random(seed, haste=0.6))
        answered += ids[-1] == RETURN
        assert len(calls) == (ids[-1] == CALL)
        for name, arguments in calls:
            check_call(name, arguments)
            called.add(name)
    assert {"get_stock", "get_stocks", "patch", "say"} <= called
    assert bool(called & {"python", "browser.search", "browser.open", "browser.find"}) == bool(options)
    assert answered


def test_required_means_a_call() -> None:
    for seed in range(20):
        text, _, [(name, arguments)], ids = turn(request(tool_choice="required"), at_random(seed, haste=0.6))
        check_call(name, arguments)
        assert (text, ids[-1]) == ("", CALL)


def test_a_named_tool_is_the_one_that_is_called() -> None:
    for seed in range(20):
        asked = request(tool_choice=NamedTool("get_stock"), template_options=BUILTINS)
        text, _, [(name, arguments)], _ = turn(asked, at_random(seed, haste=0.6))
        assert (text, name) == ("", "get_stock")
        check_call(name, arguments)
    asked = request(tool_choice=NamedTool("python"), template_options=BUILTINS)
    assert turn(asked, at_random(0))[2][0][0] == "python"


def test_none_means_no_call() -> None:
    for seed in range(20):
        _, _, calls, ids = turn(request(tool_choice="none"), at_random(seed, haste=0.6))
        assert (calls, ids[-1]) == ([], RETURN)


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_an_answer_s_schema_binds_the_visible_text_and_nothing_else(tools: Sequence[Any]) -> None:
    thought = 0
    for seed in range(40):
        text, reasoning, calls, ids = turn(request(tools, answer=NUMBER), at_random(seed, haste=0.6))
        thought += bool(reasoning)
        if ids[-1] == RETURN:
            jsonschema.validate(json.loads(text), cast(Any, NUMBER.definition))
        else:
            assert tools
            assert (text, len(calls)) == ("", 1)
    assert thought


def test_an_answer_may_also_be_bound_by_other_grammars() -> None:
    for kind, definition in (("regex", "yes|no"), ("lark", 'start: "yes" | "no"')):
        answer = Grammar(cast(Any, kind), definition)
        assert turn(request((), answer=answer), at_random(3))[0] in ("yes", "no")


@pytest.mark.parametrize("choice", ["required", NamedTool("get_stock")])
def test_with_enforcement_off_a_call_must_come_but_may_say_anything(choice: Any) -> None:
    names = set()
    source = FORMAT.grammar(request(tool_choice=choice, enforce=False))
    assert source is not None
    for seed in range(30):
        ids = walk(source, at_random(seed, haste=0.6))
        assert ids[-1] == CALL
        parser = HarmonyParser(BYTES, HARMONY, TOOLS)
        names |= {event.call.name for event in events_of(parser, ids) if event.call}
    assert names == ({"get_stock"} if choice != "required" else {"get_stock", "get_stocks", "patch", "say"})
    constraint = GRAMMARS.compile(source)
    for id in harmony("<|channel|>commentary to=functions.get_stock<|message|>"):
        if id in allowed(constraint):
            constraint.accept(id)
    assert set(b"x{[ ") <= set(allowed(constraint))


@pytest.mark.parametrize(
    "asked",
    [
        request(()),
        request((), tool_choice="none"),
        request((), enforce=False),
        request(enforce=False),
        request((), template_options=BUILTINS, enforce=False),
    ],
)
def test_where_nothing_is_bound_there_is_no_grammar(asked: ChatRequest) -> None:
    assert FORMAT.grammar(asked) is None


def test_an_answer_is_bound_even_where_calls_are_not() -> None:
    assert FORMAT.grammar(request(answer=NUMBER, enforce=False)) is not None
    assert FORMAT.grammar(request(tool_choice="none", enforce=False)) is not None


HEADERS = [
    "<|channel|>commentary to=functions.get_stock <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.get_stock<|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.get_stock json<|message|>",
    "<|channel|>commentary to=functions.get_stock<|message|>",
    " to=functions.get_stock<|channel|>commentary json<|message|>",
    " to=functions.get_stock<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.get_stock<|channel|>commentary<|message|>",
    "<|channel|>analysis to=functions.get_stock code<|message|>",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_call_may_be_written_as_models_write_it(header: str) -> None:
    source = FORMAT.grammar(request())
    assert source is not None
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    words = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
    for before in ("", thought, words, thought + words):
        assert follows(source, harmony(before + header + '{"sku":"A1","n": 3}<|call|>'))
        assert not follows(source, harmony(before + header + '{"sku":1'))
        assert not follows(source, harmony(before + header + '{"sku":"A1"}<|return|>'))
        assert not follows(source, harmony(before + header + '{"sku":"A1"}<|end|>'))


@pytest.mark.parametrize(
    "said",
    [
        "<|channel|>commentary to=functions.get_stocks_now",
        "<|channel|>commentary to=functions.other",
        "<|channel|>commentary to=get_stock<|message|>",
        "<|channel|>commentary to=python",
        "<|channel|>commentary to=functions.get_stock<|channel|>",
        "<|channel|>commentary to=functions.patch <|constrain|>json",
        "<|channel|>final<|message|>Hello.<|end|>",
        "<|channel|>analysis<|message|>Hm.<|return|>",
        "Hello",
        "<|start|>",
    ],
)
def test_what_no_turn_may_be(said: str) -> None:
    source = FORMAT.grammar(request())
    assert source is not None
    assert not follows(source, harmony(said))


def test_an_answer_in_json_may_be_marked_as_json() -> None:
    bound, free = FORMAT.grammar(request((), answer=NUMBER)), FORMAT.grammar(request(tool_choice="none"))
    assert bound is not None
    assert free is not None
    assert follows(bound, harmony('<|channel|>final <|constrain|>json<|message|>{"n":1}<|return|>'))
    assert not follows(free, harmony("<|channel|>final <|constrain|>json"))


def test_words_before_a_call_are_ruled_out_where_the_answer_is_bound() -> None:
    words = harmony("<|channel|>commentary<|message|>")
    assert not follows(FORMAT.grammar(request(answer=NUMBER)), words)
    assert not follows(FORMAT.grammar(request(tool_choice="required")), words)


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_a_model_that_would_rather_write_blanks_ends_where_its_text_is_bound(choice: Any) -> None:
    number = Grammar("json_schema", {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    closed = {**cast(Any, number.definition), "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": closed}}
    liked = preferring(" ", "\n", "\t")

    def choose(ids: list[int]) -> int:
        body = [id for id in (MESSAGE, ord("f"), *ENDS) if id in ids]  # it may think in blanks, but does not begin to
        return body[0] if body and ord(" ") not in ids else liked(ids)

    answer = Grammar("json_schema", closed)
    text, _, calls, _ = turn(request((tool,), tool_choice=choice, answer=answer), choose)
    said = text or calls[0][1]
    assert json.loads(said) == {"n": 1}
    assert "  " not in said


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request((), tool_choice="required"), "'required', but no tools are offered"),
        (request((), tool_choice=NamedTool("f")), "names 'f'; expected a tool that is offered: none at all"),
        (request(tool_choice=NamedTool("f")), "offered: get_stock, get_stocks, patch, say"),
        (request(tool_choice=NamedTool("python")), "names 'python'"),
        (request(({"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://x"}}},)), r"\$ref"),
        (
            request(({"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}},)),
            r"^tools\[0\] \(f\).parameters: the JSON Schema keyword 'not' cannot be enforced",
        ),
        (
            request(
                (
                    {
                        "type": "custom",
                        "custom": {
                            "name": "f",
                            "format": {
                                "type": "grammar",
                                "grammar": {"syntax": "lark", "definition": "start: <|call|>"},
                            },
                        },
                    },
                )
            ),
            r"^tools\[0\] \(f\).format: line 1 of the Lark grammar",
        ),
        (request((), answer=Grammar("json_schema", {"not": {}})), r"^answer: the JSON Schema keyword 'not'"),
    ],
)
def test_what_cannot_be_enforced_is_refused(asked: ChatRequest, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FORMAT.grammar(asked)


def test_a_tool_that_is_not_strict_is_enforced_as_far_as_it_can_be() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    [(_, arguments)] = turn(request((tool,), tool_choice="required"), at_random(0))[2]
    assert isinstance(json.loads(arguments)["a"], int)


def test_names_cannot_break_out_of_the_grammar() -> None:
    for name in ('a"b', "a\\", 'a"b"i', "é", "a'/{", "x\x7fy"):
        tool = {"type": "function", "function": {"name": name}}
        source = FORMAT.grammar(request((tool,), tool_choice="required"))
        assert source is not None
        header = [CHANNEL, *f"commentary to=functions.{name}".encode(), CONSTRAIN, *b"json", MESSAGE]
        assert follows(source, [*header, *b"{}", CALL])
        assert not follows(source, [CHANNEL, *b"commentary to=functions.b", MESSAGE])


def test_many_tools_and_long_strings_fit() -> None:
    many = tuple(
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}",
                "parameters": {
                    "type": "object",
                    "properties": {f"field_{j}": {"type": ["string", "null"], "maxLength": 65536} for j in range(12)},
                },
            },
        }
        for i in range(128)
    )
    source = FORMAT.grammar(request(many))
    assert source is not None
    text = "x" * 2000
    assert follows(
        source, harmony(f'<|channel|>commentary to=functions.tool_127<|message|>{{"field_3":"{text}"}}<|call|>')
    )


def test_the_turn_holds_with_the_real_ids(small_harmony_tokenizer: Tokenizer) -> None:
    """Tokens of several characters cross from one part of a header into the next."""
    from freehold.text.grammar import Grammars

    tokens = HarmonyTokens.of(small_harmony_tokenizer)
    assert tokens is not None
    grammars = Grammars(small_harmony_tokenizer, tokens.stop_ids, small_harmony_tokenizer.vocab_size)
    source = Harmony(small_harmony_tokenizer).grammar(request())
    assert source is not None
    encode = small_harmony_tokenizer.encode
    for header in HEADERS:
        assert follows(source, encode(header + '{"sku": "A1"}<|call|>', special=True), grammars), header
    constraint = grammars.compile(source)
    assert allowed(constraint, small_harmony_tokenizer.vocab_size)
    forced = constraint.accept(tokens.channel)
    forced = [*forced, *constraint.accept(encode("final")[0])]
    assert forced == [tokens.message]
