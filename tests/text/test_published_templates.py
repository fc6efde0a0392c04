"""Published templates over their own tokenizers: prompts against goldens, answer styles, and answers read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from answer_styles import TOOLS, summed
from freehold.errors import RequestError, UnsupportedError
from freehold.text.chat import Message
from freehold.text.grammar import Grammars
from freehold.text.request import ChatRequest, Grammar
from freehold.text.templates import ChatTemplate
from grammar_walks import allowed, follows
from npm_tokenizers import published

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "golden" / "chat_templates.json").read_text(encoding="utf-8")
)
ASK = (Message("user", "Weather in Oslo?"),)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
OK = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


def encoded(chat: ChatTemplate, text: str) -> list[int]:
    return chat._tokenizer.encode(text, special=True)


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{case['family']}-{i}" for i, case in enumerate(GOLDEN)])
def test_prompts_are_the_golden_ones(case: dict[str, Any]) -> None:
    chat = published(case["family"])
    messages = [Message.from_dict(message) for message in case["messages"]]
    assert chat.render_text(messages, **case["options"]) == case["prompt"]
    assert chat.render(messages, **case["options"]) == case["ids"]


@pytest.mark.parametrize(
    ("family", "calls", "thinks"),
    [("qwen3", "hermes", True), ("qwen2_5", "hermes", False), ("deepseek_v3", "deepseek_v3", False)],
)
def test_styles_are_told_by_the_template(family: str, calls: str, thinks: bool) -> None:
    style = published(family).style
    assert style.calls is not None
    assert (style.calls.name, style.thinking is not None) == (calls, thinks)


def test_a_template_without_tools_or_thoughts_has_plain_answers() -> None:
    style = published("llama3_1").style
    assert (style.calls, style.thinking) == (None, None)
    with pytest.raises(UnsupportedError, match="has no place for tools"):
        published("deepseek_v3").grammar(ChatRequest(ASK, tools=TOOLS))


def test_a_thought_and_two_calls_are_read() -> None:
    chat = published("qwen3")
    prompt = chat.render(ASK, tools=TOOLS)
    answer = summed(
        chat.parser(tools=TOOLS, prompt=prompt), encoded(chat, f"<think>\nHm.\n</think>\n\nLet me.\n{CALL}\n{CALL}")
    )
    assert (answer.text, answer.reasoning, answer.n_recoveries) == ("Let me.", "Hm.", 0)
    assert answer.calls == [["get_weather", '{"city": "Oslo"}']] * 2


def test_told_not_to_think_a_model_that_would_rather_talk_writes_what_is_asked_for() -> None:
    chat = published("qwen3")
    prompt = chat.render(ASK, reasoning_effort="none")
    assert prompt == chat.render(ASK, enable_thinking=False)
    source = chat.grammar(ChatRequest(ASK, answer=Grammar("json_schema", OK)), prompt)
    assert source is not None
    marks, end = chat._tokenizer, chat._tokenizer.special_ids["<|im_end|>"]
    constraint, said = Grammars(marks, frozenset({end}), marks.vocab_size).compile(source), list[int]()
    liked = [marks.special_ids["<think>"], *encoded(chat, "Sure, here it is")]
    while end not in (ids := allowed(constraint, marks.vocab_size)):
        id = next((id for id in liked if id in ids), ids[0])
        said += [id, *constraint.accept(id)]
    answer = summed(chat.parser(prompt=prompt), said)
    assert json.loads(answer.text) in ({"ok": True}, {"ok": False})
    assert answer.reasoning == ""


def test_control_tokens_and_schemas_bind_calls() -> None:
    chat = published("qwen2_5")
    prompt = chat.render(ASK, tools=TOOLS)
    source = chat.grammar(ChatRequest(ASK, tools=TOOLS, tool_choice="required"), prompt)
    end = chat._tokenizer.special_ids["<|im_end|>"]
    grammars = Grammars(chat._tokenizer, frozenset({end}), chat._tokenizer.vocab_size)
    assert follows(source, [*encoded(chat, CALL), end][:-1], grammars)
    assert not follows(source, encoded(chat, "Sure. "), grammars)
    assert not follows(source, encoded(chat, CALL.replace("city", "town")), grammars)
    assert not follows(source, chat._tokenizer.encode(CALL), grammars)  # the mark is a token, not its text


def test_sampled_turns_with_thoughts_come_back_as_they_were() -> None:
    chat = published("qwen2_5")
    ids = [*encoded(chat, "No"), *encoded(chat, "rw"), *encoded(chat, "ay"), chat._tokenizer.special_ids["<|im_end|>"]]
    history = [*ASK, Message("assistant", "Norway", ids=tuple(ids)), Message("user", "And?")]
    prompt = chat.render(history)
    at = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
    assert prompt[:at] == chat.render(ASK)


def test_efforts_that_a_template_does_not_know_are_refused() -> None:
    for family, effort in (("qwen3", "high"), ("qwen2_5", "none"), ("deepseek_v3", "none")):
        with pytest.raises(RequestError, match="has no option 'reasoning_effort'"):
            published(family).render(ASK, reasoning_effort=effort)
    assert published("qwen3").effort({"reasoning_effort": "none"}) is None
