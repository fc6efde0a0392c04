"""The parser of answers with marks: thoughts and calls of every style, slips of models, and any ids at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answer_styles import MARKS, TEMPLATES, TOOLS, Answer, added_up, read, summed, template, tokenizer
from freehold.text.chat import Message, ToolCall

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OSLO = ["get_weather", '{"city": "Oslo"}']


def said(answer: Answer) -> tuple[str, str, list[list[str]]]:
    return answer.text, answer.reasoning, answer.calls


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_call_as_the_template_writes_it_is_read_back(name: str, by_byte: bool, spelled: bool) -> None:
    arguments = '{"city": "S\\u00e3o \\"Paulo\\" </", "days": 2}'
    call = ToolCall("get_weather", json.dumps(json.loads(arguments), ensure_ascii=False), "functions.get_weather:0")
    turn = [Message("user", "?"), Message("assistant", "", tool_calls=(call,) if name == "llama" else (call, call))]
    written = template(name).render_text(turn, add_generation_prompt=False)
    written = written.rpartition("<|im_start|>assistant\n")[2].removesuffix("\n").removesuffix("<|im_end|>")
    answer = read(name, written, spelled=spelled, by_byte=by_byte)
    assert (answer.text, answer.reasoning, answer.n_recoveries, answer.n_reasoning) == ("", "", 0, 0)
    assert [call[0] for call in answer.calls] == ["get_weather"] * len(turn[1].tool_calls)
    assert all(json.loads(call[1]) == json.loads(arguments) for call in answer.calls)


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize(
    ("name", "prompt", "output", "expected"),
    [
        ("qwen3", "", "<think>\nLet me\n\nsee.\n</think>\n\nHi\n\nyou", ("Hi\n\nyou", "Let me\n\nsee.", [])),
        ("qwen3", "", f"<think>\nA\n</think>\n\nB\n{CALL}", ("B", "A", [OSLO])),
        ("qwen3", "", f"<think>\nA\n</think>\n\n{CALL}\n{CALL}\n", ("", "A", [OSLO, OSLO])),
        ("qwen3", "", "No thought, <think>\n</think>.", ("No thought, <think>\n</think>.", "", [])),
        ("qwen3", "<think>\n\n</think>\n\n", "\n\nHi", ("\n\nHi", "", [])),
        ("qwen3", "<think>\n\n</think>\n\n", "Hi</think>", ("Hi</think>", "", [])),
        ("qwen3", "", "<think>\n\n</think>\n\nHi", ("Hi", "", [])),
        ("qwen3", "", "<think>\nstill", ("", "still", [])),
        ("qwen3", "", "<think>\nstill\n</thi", ("", "still\n</thi", [])),
        ("qwen3", "", "\n\n", ("\n\n", "", [])),
        ("r1", "<think>\n", "\nA\n</think>\n\nB", ("B", "\nA", [])),
        ("r1", "<think>\n", "\n\n</think>\n\n\nB", ("\nB", "\n", [])),
        ("r1", "<think>\n", "<think>\nA\n</think>\n\nB", ("B", "A", [])),
        ("r1", "<think>", "\nA\n</think>\n\nB", ("B", "A", [])),
        ("r1", "<think>\n", "cut", ("", "cut", [])),
        ("glm", "", "\n<think>\nA\n</think>\n\nB", ("\nB", "\nA\n", [])),
        ("deepseek_v3_1", "<think>", "A</think>B", ("B", "A", [])),
        ("deepseek_v3_1", "</think>", "\nB", ("\nB", "", [])),
        ("hermes", "", "<think>\nA</think>", ("<think>\nA</think>", "", [])),
    ],
)
def test_thoughts_end_where_they_end(name: str, prompt: str, output: str, expected: Any, spelled: bool) -> None:
    whole = read(name, output, prompt=prompt, spelled=spelled)
    assert said(whole) == expected
    assert said(read(name, output, prompt=prompt, spelled=spelled, by_byte=True)) == expected


def test_tokens_of_reasoning_are_counted_without_marks() -> None:
    for spelled in (False, True):
        answer = read("qwen3", "<think>\nabc\n</think>\n\nB", spelled=spelled, by_byte=True)
        assert answer.n_reasoning == 4  # the line break behind the opening mark is counted, the one before </think> not
    assert read("r1", "ab<", prompt="<think>\n", by_byte=True).n_reasoning == 3


def test_visible_tokens_are_known_as_they_come() -> None:
    marks = tokenizer()
    parser = template("qwen3").parser(tools=TOOLS, prompt=())
    ids = marks.encode(f"<think>\na\n</think>\n\nB{CALL}", special=True)
    seen = "".join(marks.decode([id]) for id in ids if (parser.push(id), parser.in_text)[1])
    assert seen.strip() == "B"


@pytest.mark.parametrize(
    ("output", "expected", "n_recoveries"),
    [
        ("Hi <tool_call> is a mark", ("Hi <tool_call> is a mark", "", []), 1),
        ("<tool_call>\n{not json}\n</tool_call> x", ("<tool_call>\n{not json}\n</tool_call> x", "", []), 1),
        ('<tool_call>\n{"nom": "f"}\n</tool_call>', ('<tool_call>\n{"nom": "f"}\n</tool_call>', "", []), 1),
        ('<tool_call>{"name": "f", "x": 1}</tool_call>', ('<tool_call>{"name": "f", "x": 1}</tool_call>', "", []), 1),
        ('<tool_call>\n{"name": "now"}\n</tool_call>', ("", "", [["now", "{}"]]), 1),
        (
            '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call> and',
            (" and", "", [OSLO]),
            1,
        ),
        (
            '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>',
            ("", "", [OSLO]),
            1,
        ),
        ('<tool_call>{"name": "get_weather", "arguments": [{"city": "Oslo"}]}</tool_call>', ("", "", [OSLO]), 1),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}}</tool_call>', ("", "", [OSLO]), 0),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}</tool_call>', ("", "", [OSLO]), 0),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}\nSo.', ("So.", "", [OSLO]), 1),
        (CALL.replace("\n</tool_call>", "\n" + CALL.removeprefix("<tool_call>\n")), ("", "", [OSLO, OSLO]), 1),
        (CALL + "\nDone.", ("\nDone.", "", [OSLO]), 0),
        ('<tool_call>{"name": "get_weather", "arguments": {"ci', ("", "", [["get_weather", '{"ci']]), 0),
        ('<tool_call>{"name": "get_weather", "arguments": ', ("", "", [["get_weather", ""]]), 0),
        ('<tool_call>{"name": "get_weather", "argu', ("", "", [["get_weather", ""]]), 0),
        ('<tool_call>{"name": "get_wea', ('<tool_call>{"name": "get_wea', "", []), 1),
        ("Hi\n<tool_c", ("Hi\n<tool_c", "", []), 0),
    ],
)
def test_slips_are_put_right_and_the_rest_is_text(output: str, expected: Any, n_recoveries: int) -> None:
    for spelled in (False, True):
        for by_byte in (False, True):
            answer = read("hermes", output, spelled=spelled, by_byte=by_byte)
            assert (*said(answer), answer.n_recoveries) == (*expected, n_recoveries)


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("glm", "<tool_call>now\n</tool_call>", [["now", "{}"]]),
        ("glm", "<tool_call>now</tool_call>\n<tool_call>now</tool_call>", [["now", "{}"]] * 2),
        ("glm", "<tool_call>now\n<arg_key>a</arg_key><arg_value>1</tool_call>", [["now", '{"a": 1}']]),
        ("glm", "<tool_call>now\n<arg_key>a<arg_value>x</arg_value></tool_call>", [["now", '{"a": "x"}']]),
        ("glm", "<tool_call>now\n<arg_key>a</arg_key>1</arg_value></tool_call>", [["now", '{"a": 1}']]),
        (
            "glm",
            "<tool_call>now<arg_key>a</arg_key><arg_value>[1]<arg_key>b</arg_key><arg_value>y</arg_value></tool_call>",
            [["now", '{"a": [1], "b": "y"}']],
        ),
        (
            "glm",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n</tool_call>",
            [["get_weather", '{"city": "12"}']],
        ),
        ("glm", "<tool_call>now\n<arg_key>a</arg_key>\n<arg_value>x", [["now", '{"a": "x']]),
        ("glm", "<tool_call>now\n<arg_key>", [["now", "{"]]),
        ("glm", "<tool_call>now\n<arg_key>a", [["now", '{"a']]),
        ("qwen3_coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>", [["now", "{}"]]),
        (
            "qwen3_coder",
            "<tool_call><function=now><parameter=a>\n  x = 1\n\n  y\n</parameter></function></tool_call>",
            [["now", '{"a": "  x = 1\\n\\n  y"}']],
        ),
        ("qwen3_coder", "<tool_call>\n<function=now>\n<parameter=a>\n1\n</function>", [["now", '{"a": 1}']]),
        ("kimi", "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>", [["now", "{}"]]),
        ("kimi", "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>", [["now", ""]]),
        ("llama", '<|python_tag|>{"name": "now", "parameters": {}}', [["now", "{}"]]),
        ("llama", '{"type": "function", "name": "now", "parameters": {}}', [["now", "{}"]]),
        ("llama", '\n{"name": "now", "arguments": {}}\n{"name": "now", "parameters": {}}', [["now", "{}"]] * 2),
    ],
)
def test_each_style_forgives_what_its_models_do(name: str, output: str, expected: Any) -> None:
    for spelled in (False, True):
        for by_byte in (False, True):
            answer = read(name, output, spelled=spelled, by_byte=by_byte)
            assert (answer.text, answer.calls) == ("", expected)


@pytest.mark.parametrize("output", ['{"name": "other", "parameters": {}}', '{"a": 1} {"name": "now"}', "{x", " {"])
def test_a_bare_call_of_no_tool_is_an_answer(output: str) -> None:
    for by_byte in (False, True):
        assert said(read("llama", output, by_byte=by_byte)) == (output, "", [])


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_without_tools_calls_are_text(name: str) -> None:
    output = f'{CALL} {{"name": "now", "parameters": {{}}}} <|tool_call_begin|>'
    assert read(name, output, tools=None).text == output


words = st.integers(0, 99).map(lambda n: f"w{n}.")
snippets = st.sampled_from(
    [
        *MARKS,
        *("<think>", "</think>", "\n", "\n\n", " ", "<", "</", "{", "}", '"', "[", ":", ",", "```json\n", "```", "\\"),
        *('{"name": "now", "arguments": ', '{"name": "', '"parameters": ', "functions.", ":0", "function", "now"),
        *("<function=now>", "</function>", "<parameter=a>", "</parameter>", "€", CALL),
    ]
)


@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.booleans(),
    st.sampled_from(["", "<think>\n", "<think>", "</think>"]),
    st.lists(st.one_of(snippets, words), max_size=30),
)
@settings(max_examples=400, deadline=None)
def test_all_text_comes_out_once_however_it_comes(name: str, spelled: bool, prompt: str, parts: list[str]) -> None:
    parts = [f"{part[:-1]}-{i}." if part[0] == "w" else part for i, part in enumerate(parts)]
    answers = [read(name, "".join(parts), prompt=prompt, spelled=spelled, by_byte=by_byte) for by_byte in (False, True)]
    assert said(answers[0]) == said(answers[1])
    for part in parts:
        if part[0] == "w":
            assert answers[0].all_text.count(part) == 1


@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.integers(-2, 450), max_size=200), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_no_ids_raise_and_nothing_is_taken_back(name: str, ids: list[int], last: int) -> None:
    parser = template(name).parser(tools=TOOLS, prompt=[last])
    early = [event for id in ids for event in parser.push(id)]
    whole = summed(template(name).parser(tools=TOOLS, prompt=[last]), ids)
    late = added_up([*early, *parser.finish()], parser)
    assert late == whole


def test_parameters_that_are_no_object_are_read_all_the_same() -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"properties": 3}}}, {"type": "custom"}]
    output = "<tool_call>now\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    assert read("glm", output, tools=tools).calls == [["now", '{"a": 1}']]
