"""Which style of answers a template speaks, and where the prompt leaves its thought."""

from __future__ import annotations

from typing import Any

import pytest

from answer_styles import MARKS, TEMPLATES, template, tokenizer
from freehold.text.answer_style import AnswerStyle, Thinking, style_of
from freehold.text.chat import Message
from freehold.text.json_extent import JsonExtent

CALLS = {name: name for name in TEMPLATES} | {"qwen3": "hermes", "r1": "hermes"}
THINKING = {
    "qwen3": Thinking(n_inside=1, n_behind=2),
    "r1": Thinking(n_inside=1, n_behind=2),
    "glm": Thinking(n_inside=0, n_behind=1),
    "deepseek_v3_1": Thinking(n_inside=0, n_behind=0),
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("controls", [(), MARKS])
def test_the_source_tells(name: str, controls: tuple[str, ...]) -> None:
    style = style_of(TEMPLATES[name], controls)
    assert style.calls is not None
    assert (style.calls.name, style.thinking) == (CALLS[name], THINKING.get(name))


def test_control_tokens_tell_where_the_source_shows_tools_and_no_calls() -> None:
    source = "{{ tools | tojson }}<|im_middle|>"
    kimi = [mark for mark in MARKS if mark.startswith("<|tool_call")]
    style = style_of(source, kimi)
    assert style.calls is not None
    assert style.calls.name == "kimi"
    assert style_of(source, ()) == style_of("{{ messages }}", kimi) == AnswerStyle()


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("qwen3", {}, None),
        ("qwen3", {"enable_thinking": False}, False),
        ("r1", {}, True),
        ("glm", {"enable_thinking": False}, False),
        ("deepseek_v3_1", {}, False),
        ("deepseek_v3_1", {"thinking": True}, True),
    ],
)
def test_the_end_of_the_prompt_says_whether_a_thought_is_open(
    name: str, options: dict[str, Any], expected: bool | None, spelled: bool
) -> None:
    chat = template(name, spelled=spelled)
    prompt = chat.render([Message("user", "<think>")], **options)
    assert chat.style.thinking is not None
    assert chat.style.thinking.is_open_in(prompt, tokenizer(spelled=spelled)) is expected


@pytest.mark.parametrize(
    ("text", "n_chars", "is_broken"),
    [
        ('{"a": "}\\"]", "b": [1, {}]} tail', 27, False),
        (" [] []", 3, False),
        ("{}}", 2, False),
        ('{"a": 1</x>', 7, True),
        ("x{}", 0, True),
        ("}", 0, True),
        ('"text"', 0, True),
    ],
)
def test_json_ends_where_it_ends_however_it_comes(text: str, n_chars: int, is_broken: bool) -> None:
    whole, piecewise = JsonExtent(), JsonExtent()
    assert whole.push(text) == sum(map(piecewise.push, text)) == n_chars
    assert whole.is_done
    assert piecewise.is_broken == whole.is_broken == is_broken
