"""The harmony parser on every kind of output seen from models, one id at a time."""

from __future__ import annotations

import pytest

from freehold.text.answer import CallStart
from freehold.text.harmony_parser import BETWEEN_MESSAGES, MAX_HEADER_TOKENS, HarmonyParser
from harmony_answers import BYTES, read, said
from scripted_model import HARMONY, SPLIT, VOCAB, harmony

THINK = "<|channel|>analysis<|message|>hm<|end|>"
STOCK = '{"sku":"A1"}'


def test_an_answer_as_it_should_be() -> None:
    answer = said(f"{THINK}<|start|>assistant<|channel|>final<|message|>Hello.<|return|>")
    assert (answer.text, answer.reasoning, answer.n_reasoning, answer.n_recoveries) == ("Hello.", "hm", 2, 0)


@pytest.mark.parametrize(
    ("output", "call"),
    [
        (
            "<|channel|>commentary to=functions.get_stock <|constrain|>json<|message|>{}<|call|>",
            CallStart("get_stock", "commentary", "json", "functions.get_stock"),
        ),
        (
            "<|channel|>commentary to=functions.get_stock<|constrain|>json<|message|>{}<|call|>",
            CallStart("get_stock", "commentary", "json", "functions.get_stock"),
        ),
        (
            " to=functions.get_stock<|channel|>commentary json<|message|>{}<|call|>",
            CallStart("get_stock", "commentary", "json", "functions.get_stock"),
        ),
        (
            "<|channel|>commentary to=get_stock<|message|>{}<|call|>",
            CallStart("get_stock", "commentary", None, "get_stock"),
        ),
        (
            "<|channel|>analysis to=functions.get_stock code<|message|>{}<|call|>",
            CallStart("get_stock", "analysis", "code", "functions.get_stock"),
        ),
        (
            "<|channel|>analysis to=python code<|message|>{}<|call|>",
            CallStart("python", "analysis", "code", "python"),
        ),
        (
            "<|channel|>analysis to=browser.search code<|message|>{}<|call|>",
            CallStart("browser.search", "analysis", "code", "browser.search"),
        ),
        (
            "<|channel|>commentary to=functions.never_offered json<|message|>{}<|call|>",
            CallStart("never_offered", "commentary", "json", "functions.never_offered"),
        ),
    ],
)
def test_the_recipient_makes_the_call_wherever_it_stands(output: str, call: CallStart) -> None:
    answer = said(output, "get_stock")
    assert answer.calls == [(call, "{}")]
    assert (answer.text, answer.reasoning, answer.n_recoveries, answer.n_reasoning) == ("", "", 0, 0)


@pytest.mark.parametrize(
    "output",
    [
        # a control token inside the recipient
        "<|channel|>commentary to=functions.get_stock<|channel|>commentary json<|message|>@<|call|>",
        "<|channel|>commentary to=functions.get_stock<|start|>"[: -len("<|start|>")]
        + "<|im_end|> x<|message|>@<|call|>",
        # glued words
        "<|channel|>commentary to=functions.get_stockjson<|message|>@<|call|>",
        "<|channel|>commentaryto=functions.get_stock<|message|>@<|call|>",
        " to=functions.get_stockcommentary<|message|>@<|call|>",
        # no "to=", or the tool in the role's place
        "<|channel|>commentary functions.get_stock<|message|>@<|call|>",
        "<|channel|>functions.get_stock<|message|>@<|call|>",
        "<|start|>functions.get_stock<|channel|>commentary json<|message|>@<|call|>",
        # no message token, no channel, neither
        "<|channel|>commentary to=functions.get_stock json@<|call|>",
        "<|channel|>commentary to=functions.get_stock@<|call|>",
        "<|channel|>commentary to=functions.get_stock <|constrain|>json@<|call|>",
        " to=functions.get_stock<|message|>@<|call|>",
        " to=functions.get_stock json@<|call|>",
        "to=get_stock @<|call|>",
        # the wrong end, and no end
        "<|channel|>commentary to=functions.get_stock json<|message|>@<|end|>",
        "<|channel|>commentary to=functions.get_stock json<|message|>@<|return|>",
        "<|channel|>commentary to=functions.get_stock json<|message|>@",
        "<|channel|>commentary to=functions.get_stock json<|message|>@<|channel|>final",
    ],
)
def test_malformed_calls_are_calls(output: str) -> None:
    answer = said(output.replace("@", STOCK), "get_stock", "other")
    assert answer.named == [("get_stock", STOCK)]
    assert answer.text == answer.reasoning == ""


def test_glued_names_are_cut_only_for_what_was_offered() -> None:
    output = '<|channel|>commentary to=functions.shelljson<|message|>{"c":"ls"}<|call|>'
    assert said(output, "shell").calls[0][0] == CallStart("shell", "commentary", "json", "functions.shelljson")
    assert said(output, "shell", "shelljson").named == [("shelljson", '{"c":"ls"}')]
    assert said(output).named == [("shelljson", '{"c":"ls"}')]


@pytest.mark.parametrize(
    ("output", "text", "reasoning"),
    [
        # bare text, at the start and later, also where it begins like a header
        ('{"ok":true}<|return|>', '{"ok":true}', ""),
        ("finally, done", "finally, done", ""),
        ("to=x is how it is written<|end|>", "to=x is how it is written", ""),
        ("assistants help", "assistants help", ""),
        ("\n\n a<|return|>", "\n\n a", ""),
        ("final", "final", ""),
        (f"{THINK}Hello.<|return|>", "Hello.", "hm"),
        (f"{THINK}<|start|>assistant Hello.<|return|>", "Hello.", "hm"),
        # a direct answer, a preamble, no final message
        ('<|channel|>final<|message|>{"ok":true}<|return|>', '{"ok":true}', ""),
        ('<|channel|>final <|constrain|>json<|message|>{"ok":true}<|return|>', '{"ok":true}', ""),
        ("<|channel|>commentary<|message|>Let me see.<|end|>", "Let me see.", ""),
        (f"{THINK}", "", "hm"),
        # missing tokens
        ("final<|message|>ok<|return|>", "ok", ""),
        (f"{THINK}assistant<|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        (f"{THINK}<|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        (f"{THINK}<|start|><|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        (f"{THINK}<|start|>assistantfinal<|message|>ok<|return|>", "ok", "hm"),
        ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        ("<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>ok", "ok", "hm"),
        ("<|channel|>final ok<|return|>", "ok", ""),
        ("<|channel|>analysis hm<|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        # tokens that have no business there
        ("<|start|>assistant<|channel|>final<|message|>ok<|return|>", "ok", ""),
        ("<|channel|>final<|message|>o<|message|><|constrain|><|im_end|>k<|return|>", "ok", ""),
        ("<|channel|>final<|im_end|><|message|>ok<|return|>", "ok", ""),
        (f"{THINK}<|end|><|end|><|start|><|start|>assistant<|channel|>final<|message|>ok<|return|>", "ok", "hm"),
        ("<|channel|>analysis<|channel|>final<|message|>ok<|return|>", "ok", ""),
        # headers with junk
        ("<|channel|>?? we should answer <|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>", "ok", ""),
        ("<|channel|>?? we should answer <|channel|>final<|message|>ok<|return|>", "ok", ""),
        ("<|channel|>?? we should<|message|>ok<|return|>", "ok", ""),
        ("<|channel|>analysis we should<|message|>hm<|end|>ok", "ok", "hm"),
        ("<|channel|>final to=user<|message|>ok<|return|>", "ok", ""),
        ("<|channel|>final to=<|message|>ok<|return|>", "ok", ""),
        # nothing but junk: the whole answer may not be lost
        ("<|channel|>?? the answer is 4 <|end|>", "?? the answer is 4 ", ""),
        (f"{THINK}<|start|>assistant<|channel|>?? 4<|return|>", "?? 4", "hm"),
        # a made-up tool result, beside an answer and alone
        ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|>It is 3", "It is 3", ""),
        ("<|start|>user<|message|>Next question<|end|><|start|>assistant<|channel|>final<|message|>ok", "ok", ""),
        ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|>", "3", ""),
        # several of a kind, in any order
        (
            "<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>c<|end|><|start|>assistant<|channel|>analysis<|message|>d",
            f"a{BETWEEN_MESSAGES}c",
            f"b{BETWEEN_MESSAGES}d",
        ),
    ],
)
def test_text_and_reasoning_are_found(output: str, text: str, reasoning: str) -> None:
    answer = said(output)
    assert (answer.text, answer.reasoning, answer.calls) == (text, reasoning, [])


@pytest.mark.parametrize(
    ("output", "n_recoveries"),
    [
        ("<|channel|>final<|message|>ok<|return|>", 0),
        (f"{THINK}<|start|>assistant<|channel|>final<|message|>ok", 0),
        ("<|channel|>?? we should answer <|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>", 1),
        ('{"ok":true}<|return|>', 1),
        (f"{THINK}<|channel|>final<|message|>ok<|return|>", 1),
        ("<|channel|>final<|message|>o<|message|>k<|return|>", 1),
        ("<|channel|>final<|message|>ok<|return|><|return|>", 1),
        ('<|channel|>commentary to=functions.f json<|message|>{"a":{"b":[1,2}<|call|>', 1),
        ("<|channel|>final", 0),
    ],
)
def test_recoveries_are_counted(output: str, n_recoveries: int) -> None:
    assert said(output, "f").n_recoveries == n_recoveries


WHOLE = (
    "<|channel|>analysis<|message|>thinking<|end|><|start|>assistant to=functions.get_stock<|channel|>commentary "
    '<|constrain|>json<|message|>{"sku":"A1"}<|call|>'
)


def test_output_may_be_cut_anywhere() -> None:
    ids = harmony(WHOLE)
    for n in range(len(ids) + 1):
        answer = read(ids[:n], "get_stock")
        assert answer.text == ""
        assert "thinking".startswith(answer.reasoning)
        assert all(name == "get_stock" and STOCK.startswith(arguments) for name, arguments in answer.named)
        assert answer.n_recoveries == 0


def test_calls_are_never_lost_and_never_changed() -> None:
    head = "<|channel|>commentary to=functions.f json<|message|>"
    for body in ('{"a":{"b":[1,2}', "no JSON", "", "  {}\n", "[1]", "[{}, {}]", "[" * 5000, '[{"a":1}'):
        assert said(f"{head}{body}<|call|>", "f").named == [("f", body)]
    python = "<|channel|>analysis to=python code<|message|>print([1])\n<|call|>"
    assert said(python).named == [("python", "print([1])\n")]
    assert said(python).n_recoveries == 0


def test_an_object_in_an_array_is_unwrapped_where_the_schema_wants_an_object() -> None:
    ids = harmony('<|channel|>commentary to=functions.f json<|message|> [ {"a": [1]} ] <|call|>')
    assert read(ids, "f").named == [("f", '{"a": [1]}')]
    assert read(ids, "f", parameters={"type": "array"}).named == [("f", ' [ {"a": [1]} ] ')]
    assert read(ids, "f", parameters=None).named == [("f", ' [ {"a": [1]} ] ')]
    assert read(ids).named == [("f", ' [ {"a": [1]} ] ')]


def test_arguments_come_as_they_are_generated() -> None:
    answer = said('<|channel|>commentary to=functions.f json<|message|>{"a": 1}<|call|>', "f")
    pieces = [event.text for event in answer.events if event.kind == "tool_call"]
    assert pieces == ["", *'{"a": 1}']


def test_a_header_without_an_end_does_not_hold_text_back() -> None:
    words = "word " * 100
    parser = HarmonyParser(BYTES, HARMONY)
    shown = [parser.push(id) for id in harmony(f"<|channel|>{words}")]
    n_events = [bool(events) for events in shown]
    assert n_events.index(True) <= MAX_HEADER_TOKENS + 1
    assert all(n_events[n_events.index(True) :])
    assert said(f"<|channel|>{words}").text == words
    assert said(f"to={words}").text == f"to={words}"
    assert said(" " * 500).text == " " * 500
    assert said(f"<|channel|>analysis {words}").reasoning == words
    assert said("<|channel|>" * 1000).text == ""


def test_bare_text_is_shown_at_once() -> None:
    parser = HarmonyParser(BYTES, HARMONY)
    assert [event.text for id in b"Hello" for event in parser.push(id)] == list("Hello")


def test_a_broken_character_costs_itself_only() -> None:
    head, more = harmony("<|channel|>final<|message|>"), harmony("<|start|>assistant<|channel|>final<|message|>")
    ids = [*head, 0x80, *b" rest of the text", *harmony("<|end|>"), *more, *"日本".encode()]
    assert read(ids).text == f"\ufffd rest of the text{BETWEEN_MESSAGES}日本"
    unfinished = [*head, *"日".encode()[:2], *harmony("<|end|>"), *more, *b"second"]
    assert read(unfinished).text == f"\ufffd{BETWEEN_MESSAGES}second"


def test_no_delta_splits_a_character() -> None:
    answer = said("<|channel|>final<|message|>日本😀é<|return|>")
    assert [event.text for event in answer.events] == ["日", "本", "😀", "é"]


def test_control_tokens_written_out_are_text() -> None:
    head = harmony("<|channel|>final<|message|>")
    assert read([*head, *b"<|end|><|start|>"]).text == "<|end|><|start|>"


@pytest.mark.parametrize(
    ("output", "visible"),
    [
        (f"{THINK}<|start|>assistant<|channel|>final<|message|>Hé.<|return|>", "Hé."),
        (
            "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>final<|message|>Ok<|return|>",
            "Wait.Ok",
        ),
        ("<|channel|>commentary to=functions.f json<|message|>{}<|call|>", ""),
        ("<|channel|>analysis<|message|>hm<|return|>", ""),
        ('{"ok":true}<|return|>', '{"ok":true}'),
        ("<|channel|>final<|message|>a<|constrain|>b", "ab"),
    ],
)
def test_which_tokens_are_visible_text(output: str, visible: str) -> None:
    parser = HarmonyParser(BYTES, HARMONY)
    ids = []
    for id in harmony(output):
        parser.push(id)
        ids += [id] if parser.in_text else []
    assert bytes(ids).decode() == visible


def test_half_a_character_is_visible_text_too() -> None:
    parser = HarmonyParser(BYTES, HARMONY)
    seen = []
    for id in [*harmony("<|channel|>final<|message|>"), SPLIT, 0xAC, VOCAB]:
        parser.push(id)
        seen.append(parser.in_text)
    assert seen[-3:] == [True, True, False]
