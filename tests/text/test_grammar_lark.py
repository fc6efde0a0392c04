"""Regular expressions and Lark grammars of a request: what they bind, and what they must not reach or break."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.text.grammar_lark import MAX_CHARS, MAX_LEVELS, MAX_NESTING
from freehold.text.grammar_source import rule_body, unenforced
from freehold.text.request import Grammar
from grammar_walks import ENDS, GRAMMARS, Choice, allowed, at_random, text_of, walk

PATCH = """
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk  // two kinds
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

%import common.LF
"""
"""The shape of grammars that coding agents send."""


def said(kind: str, definition: str, seed: int = 0) -> str:
    grammar = Grammar("regex" if kind == "regex" else "lark", definition)
    return text_of(walk(f"start: {rule_body(grammar)}", at_random(seed)))


def in_lines(seed: int) -> Choice:
    """Any id, but sooner or later the end of the line."""
    source = random.Random(seed)
    return lambda ids: ord("\n") if ord("\n") in ids and source.random() < 0.2 else source.choice(ids)


def refusal(kind: str, definition: str) -> str:
    with pytest.raises(RequestError) as refused:
        said(kind, definition)
    assert len(str(refused.value)) < 600
    return str(refused.value)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "yes|no",
            "[a-c]{3}",
            "a/b",
            "[/]x",
            "\\d{4}-\\d\\d",
            "^(foo|bar)$",
            "(a(b(c)?)?)?d",
            "[]x]",
            "\\/\\\\",
            "a\nb",
        ),
        *("(?i:yes)", "[^a-y\\W]", "é+", "#//"),
    ],
)
def test_a_regular_expression_binds_the_whole_text(pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, said("regex", pattern, seed)), pattern


def test_a_lark_grammar_binds_the_whole_text() -> None:
    for seed in range(5):
        text = text_of(walk(f"start: {rule_body(Grammar('lark', PATCH))}", in_lines(seed)))
        assert text.startswith("*** Begin Patch\n*** ")
        assert re.search(r"\n\*\*\* End Patch\n?$", text)
        for line in text.rstrip("\n").split("\n")[1:-1]:
            assert line.startswith(("+", "*** Add File: ", "*** Delete File: "))


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ('start: "a" ("b")~2 ("c"){2} x\nx: "d" -> letter', "abbccd"),
        ('?start: inner # a comment "z"\n!inner: "a"\n  | "a"', "a"),
        ('start: A\nA: "a".."a"  // <|call|> in a comment is none', "a"),
        ('start: "<|call|>" /<\\|end\\|>/', "<|call|><|end|>"),
        ('start: "a" (b c){2} b\nb: "b"{1,1}\nc: "c"{ 1 }\n', "abcbcb"),
        ('start: a-b\na-b: "}" "@}" "{"', "}@}{"),
        ('start: "\\u0041\\\\"', "A\\"),
    ],
)
def test_what_lark_may_say(definition: str, text: str) -> None:
    assert said("lark", definition) == text


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ('start: "a" <|call|>', "line 1 of the Lark grammar has '<|call|>'"),
        ('start: "a"\n  | <[200012]>', "line 2 of the Lark grammar has '<[200012]>'"),
        ("start: A\nA: ~/a/", "line 2 of the Lark grammar has '~/a/'"),
        ('start: A\nA: /b/ & ~"a"', "has '& ~"),
        ("start: @other", "has '@other'"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "has '%llguidance"),
        ("start: %json {}", "has '%json"),
        ('start: %regex {"substring_chars": "a"}', "has '%regex"),
        ("start: %lark { start: <[1]> }", "has '%lark"),
        ('%import .file\nstart: "a"', "has '%import .file'"),
        ('%import python.NAME\nstart: "a"', "has '%import python.NAME'"),
        ('%declare X\nstart: "a"', "has '%declare X'"),
        ('start[max_tokens=3]: "a"', "has '=3]"),
        ('start: "a" }\nstart2: "b"', "has '}'"),
        ('start: "a" @}', "has '@}'"),
        ('start: "a" )', "has ')' too many"),
        ('start: "a" %ignore " "', "has %ignore inside a rule"),
        ('start: "a', "has '\"a'"),
        ('begin: "a"', "no rule named start"),
        ("start: nowhere", "nowhere"),
        ("start: /[/ /]/", "cannot be enforced"),
        ("start: /(?-u:\\xff)/", "invalid UTF-8"),
        ("start: start", "no text matches it"),
        ("start: A\nA: A", "circular"),
        ("start: /\\bx/", "look"),
    ],
)
def test_what_lark_may_not_say(definition: str, message: str) -> None:
    assert message in refusal("lark", definition)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a\\", "lone backslash"),
        ("(a", "unclosed group"),
        ("a)", "unopened group"),
        ("[a", "unclosed character class"),
        ("(?=a)b", "look-around"),
        ("(?-u:\\xff)", "invalid UTF-8"),
        ("(a)\\1", "backreference"),
        ("", "no text matches it"),
        ("x" * (MAX_CHARS + 1), "characters long"),
        ("(" * 10_000 + "a" + ")" * 10_000, f"nested more than {MAX_NESTING}"),
        ("[" * 10_000, f"nested more than {MAX_NESTING}"),
        ("a" + "*" * 10_000, "cannot be enforced"),
        ("\ud800", "surrogate"),
    ],
)
def test_regular_expressions_that_are_refused(pattern: str, message: str) -> None:
    assert message in refusal("regex", pattern)


def test_messages_say_where() -> None:
    grammar = Grammar("lark", "start: <[1]>", where="tools[2] (patch).format")
    with pytest.raises(RequestError, match=r"^tools\[2\] \(patch\).format: line 1"):
        rule_body(grammar)
    assert unenforced(Grammar("lark", 'start: "a"')) == []
    with pytest.raises(RequestError, match="a regex grammar is a NoneType"):
        rule_body(Grammar("regex"))


ALPHABET = '"/<|>[]{}()~@%&:\\\n#* ab1startAB'


@settings(max_examples=200, deadline=None)
@given(st.text(ALPHABET, max_size=30), st.sampled_from(["regex", "lark"]))
def test_no_text_gets_out_of_its_place(text: str, kind: str) -> None:
    """Whatever stands there is refused, or followed by the rest of our grammar, and reaches no control token."""
    definition = text if kind == "regex" else f'start: "a" {text}'
    try:
        body = rule_body(Grammar("regex" if kind == "regex" else "lark", definition))
    except RequestError:
        return
    with suppress(RequestError):  # a rule may lead nowhere but to itself
        said = text_of(walk(f'start: "<" part ">"\npart: {body}', at_random(len(text), haste=0.5)))
        assert (said[0], said[-1]) == ("<", ">")


HOSTILE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "nesting": lambda: ("json_schema", json.loads('{"items":' * 900 + "{}" + "}" * 900)),
    "references": lambda: ("json_schema", _chain(4000)),
    "references within the limit": lambda: ("json_schema", _chain(MAX_LEVELS // 2 - 2)),
    "product of unions": lambda: (
        "json_schema",
        {"allOf": [{"anyOf": [{"properties": {f"{i}.{j}": {}}} for j in range(9)]} for i in range(40)]},
    ),
    "many values": lambda: ("json_schema", {"enum": [f"value {i}" for i in range(5000)]}),
    "many properties": lambda: ("json_schema", {"properties": {f"p{i}": {} for i in range(8000)}}),
    "groups": lambda: ("regex", "(" * 10_000 + "a" + ")*" * 10_000),
    "groups within the limit": lambda: ("regex", "(" * MAX_NESTING + "a" + "b)" * MAX_NESTING),
    "stars": lambda: ("regex", "a" + "*" * 10_000),
    "pattern": lambda: ("json_schema", {"type": "string", "pattern": "(" * 10_000 + "a" + ")*" * 10_000}),
    "repetition": lambda: ("regex", "((a{1000}){1000}){1000}"),
    "lookback": lambda: ("regex", "(.*a.{3000})+"),
    "brackets": lambda: ("lark", "start: " + "(" * 10_000 + '"a"' + ")" * 10_000),
    "rules": lambda: ("lark", _rules(9000, "r")),
    "terminals": lambda: ("lark", _rules(9000, "T")),
    "rules within the limit": lambda: ("lark", _rules(MAX_LEVELS - 2, "r")),
    "terminals within the limit": lambda: ("lark", _rules(MAX_LEVELS - 2, "T")),
    "groups in rules within the limit": lambda: (
        "lark",
        "start: r0\n" + "".join(f'r{i}: {"(" * 20}r{i + 1} | "a"{")" * 20}\n' for i in range(8)) + 'r8: "b"',
    ),
    "self": lambda: ("lark", 'start: start start | "a"'),
}


def _chain(n_links: int) -> dict[str, object]:
    links = {f"{i}": {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(n_links)}
    return {"$ref": "#/$defs/0", "$defs": {**links, f"{n_links}": {}}}


def _rules(n_rules: int, letter: str) -> str:
    links = "".join(f'{letter}{i}: "(" {letter}{i + 1}* ")"\n' for i in range(n_rules))
    return f'start: {letter}0\n{links}{letter}{n_rules}: "a"'


def test_nothing_kills_the_process() -> None:
    """One process tries all of it, on a thread with a stack as small as some systems have it."""
    run = subprocess.run(
        [sys.executable, __file__, str(512 * 1024)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    assert outcomes.keys() == HOSTILE.keys()
    assert {outcomes[name].split()[0] for name in outcomes} <= {"RequestError", "GrammarError", "said"}
    for name in outcomes:
        if "within the limit" in name or name == "many values":
            assert outcomes[name].startswith("said"), (name, outcomes[name])


def _try_all() -> None:
    for name, make in HOSTILE.items():
        kind, definition = make()
        try:
            body = rule_body(Grammar(kind, definition))
            constraint = GRAMMARS.compile(f"start: {body}")
            n_said = 0
            while n_said < 300 and not ENDS & set(ids := allowed(constraint)):
                n_said += 1 + len(constraint.accept(ord("(") if ord("(") in ids else ids[0]))
            print(f"{name}: said {n_said}")
        except RequestError as error:
            print(f"{name}: {type(error).__name__} {str(error)[:100]!r}")


if __name__ == "__main__":
    threading.stack_size(int(sys.argv[1]))
    worker = threading.Thread(target=_try_all)
    worker.start()
    worker.join()
