"""Harmony answers through the runtime: reasoning, calls, finish reasons, counts, stop strings, replayed ids."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from freehold import Message
from freehold.errors import EngineError, RequestError
from freehold.loading import load_text
from freehold.text.answer import CallStart
from freehold.text.chat import ToolCall
from freehold.text.harmony import Harmony
from freehold.text.tokenizer import Tokenizer
from scripted_model import CALL, RETURN, HarmonyByteTokenizer, HarmonyRoles, ScriptedLocalModel, harmony, scripted

HELLO = [{"role": "user", "content": "Hello"}]
THINK = "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


def says(output: str | list[int], **options: Any) -> ScriptedLocalModel:
    """A model that answers with `output`, control tokens by name."""
    return scripted(harmony(output) if isinstance(output, str) else output, chat_format=HarmonyRoles, **options)


def tools(*names: str) -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": {}}
    return [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]


def both(output: str | list[int], **options: Any) -> Any:
    """The reply to `output`, which must be the same whether it is streamed or not."""
    with says(output) as model:
        whole = model.chat(HELLO, enforce=False, **options)
        stream = model.chat(HELLO, stream=True, enforce=False, **options)
        events = list(stream)
        streamed = stream.reply()
    assert [replace(call, id=None) for call in whole.tool_calls] == [
        replace(call, id=None) for call in streamed.tool_calls
    ]
    for name in ("text", "reasoning", "finish_reason", "ids", "n_reasoning", "n_recoveries"):
        assert getattr(whole, name) == getattr(streamed, name), name
    assert "".join(event.text for event in events if event.kind == "text") == whole.text
    assert [event.kind == "finish" for event in events] == [False] * (len(events) - 1) + [True]
    assert (events[-1].finish_reason, events[-1].n_reasoning) == (whole.finish_reason, whole.n_reasoning)
    return whole


def test_reasoning_is_apart_from_the_answer() -> None:
    reply = both(f"{THINK}{FINAL}Hello.<|return|>")
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Hello.", "Let me think.", "stop")
    assert (reply.n_reasoning, reply.n_recoveries) == (len("Let me think."), 0)
    assert reply.n_generated == len(reply.ids) == len(harmony(f"{THINK}{FINAL}Hello.<|return|>"))


@pytest.mark.parametrize(
    "output",
    [
        "<|channel|>commentary to=functions.get_stock <|constrain|>json<|message|>@<|call|>",
        " to=functions.get_stock<|channel|>commentary json<|message|>@<|call|>",
        "<|channel|>analysis to=functions.get_stock code<|message|>@<|call|>",
    ],
)
def test_a_call_ends_the_turn_and_is_replayed_as_it_was_sampled(output: str) -> None:
    ids = harmony(output.replace("@", '{"sku":"A1"}'))
    reply = both(ids, tools=tools("get_stock"))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", None, "tool_calls")
    [call] = reply.tool_calls
    assert (call.name, call.arguments) == ("get_stock", '{"sku":"A1"}')
    assert reply.ids == tuple(ids)
    turn = Message("assistant", reply.text, reply.reasoning, reply.tool_calls, ids=reply.ids)
    asked = [Message("user", "q"), turn, Message("tool", "3", tool_call_id=call.id)]
    prompt = Harmony(cast(Tokenizer, HarmonyByteTokenizer())).render(asked, tools=tools("get_stock"))
    assert str(ids)[1:-1] in str(prompt)


def test_reasoning_goes_back_until_it_led_to_an_answer() -> None:
    """Replies as history: the reasoning stays while a call is open; text with markup in it is text."""
    render = Harmony(cast(Tokenizer, HarmonyByteTokenizer())).render_text
    called = both(f"{THINK} to=functions.f<|channel|>commentary json<|message|>{{}}<|call|>", tools=tools("f"))
    [call] = called.tool_calls
    history = [
        Message("user", "q"),
        Message("assistant", called.text, called.reasoning, called.tool_calls, ids=called.ids),
        Message("tool", "3", tool_call_id=call.id),
    ]
    assert "Let me think." in render(history, tools=tools("f"))
    answered = both(f"{THINK}{FINAL}It is 3.<|return|>")
    history.append(Message("assistant", answered.text, answered.reasoning, ids=answered.ids))
    prompt = render([*history, Message("user", "thanks")], tools=tools("f"))
    assert "Let me think." not in prompt
    assert "It is 3.<|end|>" in prompt
    leaked = Message("assistant", "<|channel|>final<|message|>x")
    assert "<|channel|>final<|message|>x<|end|>" in render([Message("user", "q"), leaked, Message("user", "r")])


def test_glued_names_follow_what_was_offered() -> None:
    output = '<|channel|>commentary to=functions.shelljson<|message|>{"c":"ls"}<|call|>'
    assert both(output, tools=tools("shell")).tool_calls[0].name == "shell"
    assert both(output, tools=tools("shell", "shelljson")).tool_calls[0].name == "shelljson"
    assert both(output).tool_calls[0].name == "shelljson"


def test_a_junk_header_is_dropped_and_counted() -> None:
    reply = both(f"<|channel|>?? we should answer <|end|><|start|>assistant{FINAL}ok<|return|>")
    assert (reply.text, reply.reasoning, reply.n_recoveries) == ("ok", None, 1)


@pytest.mark.parametrize("output", ['{"ok":true}<|return|>', f'{FINAL}{{"ok":true}}<|return|>'])
def test_an_answer_without_reasoning_or_markup(output: str) -> None:
    reply = both(output)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ('{"ok":true}', None, "stop")


def test_bad_arguments_are_kept_and_counted() -> None:
    head = "<|channel|>commentary to=functions.f json<|message|>"
    reply = both(f'{head}{{"a":{{"b":[1,2}}<|call|>', tools=tools("f"))
    assert (reply.tool_calls[0].arguments, reply.finish_reason) == ('{"a":{"b":[1,2}', "tool_calls")
    assert reply.n_recoveries == 1
    assert both(f'{head}[{{"a":1}}]<|call|>', tools=tools("f")).tool_calls[0].arguments == '{"a":1}'


def test_bad_bytes_cost_one_replacement_character() -> None:
    rest = [*b" rest of the text", *harmony(f"<|end|><|start|>assistant{FINAL}second<|return|>")]
    assert both([*harmony(FINAL), 0x80, *rest]).text == "\ufffd rest of the text\n\nsecond"


def test_characters_that_come_byte_by_byte() -> None:
    with says(f"{FINAL}日本😀é<|return|>") as model:
        stream = model.chat(HELLO, stream=True)
        pieces = [event.text for event in stream if event.text]
        assert pieces == ["日", "本", "😀", "é"]
        assert stream.reply().n_generated == len(harmony(f"{FINAL}日本😀é<|return|>"))


def test_reasoning_that_is_cut_short() -> None:
    n = len(harmony("<|channel|>analysis<|message|>"))
    reply = both(f"{THINK}{FINAL}Hello.<|return|>", max_tokens=n + 4)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", "Let ", "length")
    assert (reply.n_generated, reply.n_reasoning) == (n + 4, 4)


def test_a_call_that_is_cut_short_is_no_turn_to_answer() -> None:
    output = '<|channel|>commentary to=functions.f json<|message|>{"a":1}<|call|>'
    reply = both(output, tools=tools("f"), max_tokens=len(harmony(output)) - 3)
    assert (reply.tool_calls[0].arguments, reply.finish_reason) == ('{"a":', "length")


def test_stop_strings_see_visible_text_only() -> None:
    output = "<|channel|>analysis<|message|>STOP<|end|><|start|>assistant<|channel|>commentary<|message|>one ST"
    output += "<|end|><|start|>assistant<|channel|>analysis<|message|>OP<|end|><|start|>assistant"
    reply = both(f"{output}{FINAL}two STOP three<|return|>", stop="STOP")
    assert (reply.text, reply.finish_reason) == ("one ST\n\ntwo ", "stop")
    assert reply.reasoning == "STOP\n\nOP"
    call = "<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>STOP<|call|>"
    assert both(f"{FINAL}a{call}", stop="STOP").tool_calls[0].arguments == "STOP"
    reply = both(f"{FINAL}a STOP{call}", stop="STOP")
    assert (reply.text, reply.tool_calls) == ("a ", ())


def test_the_formats_ends_hold_whatever_the_files_say() -> None:
    from freehold.core import SamplingParams

    for end in (RETURN, CALL):
        with says([*harmony(f"{FINAL}ok"), end, *b"beyond"], sampling_defaults=SamplingParams()) as model:
            reply = model.chat(HELLO)
            assert (reply.text, reply.ids[-1], reply.finish_reason) == ("ok", end, "stop")


def test_call_events_and_ids() -> None:
    call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}"
    with says(f"{call}<|end|><|start|>assistant{call}<|call|>") as model:
        stream = model.chat(HELLO, stream=True)
        events = [event for event in stream if event.kind == "tool_call"]
        start = CallStart("f", "commentary", "json", "functions.f")
        assert [(event.call, event.text, event.index) for event in events] == [
            (start, "", 0),
            (None, "{", 0),
            (None, "}", 0),
            (start, "", 1),
            (None, "{", 1),
            (None, "}", 1),
        ]
        ids = [call.id for call in stream.reply().tool_calls]
        assert ids == [stream.call_id(0), stream.call_id(1)]
        later = model.chat([*HELLO, {"role": "assistant", "content": "x"}, HELLO[0]]).tool_calls
        assert len({*ids, *(call.id for call in later)}) == 4
        assert all(id and id.startswith("call_") for id in ids)


def test_options_reach_the_format() -> None:
    with says(f"{FINAL}ok") as model:
        shown = cast(HarmonyRoles, model.chat_format)
        model.chat(HELLO, reasoning_effort="low")
        assert shown.options["reasoning_effort"] == "low"
        model.chat(HELLO, template_options={"reasoning_effort": "high"})
        assert shown.options["reasoning_effort"] == "high"
        with pytest.raises(RequestError, match="'tools', which the request sets"):
            model.chat(HELLO, template_options={"tools": []})
    with scripted() as plain, pytest.raises(RequestError, match="no option 'reasoning_effort'"):
        plain.chat(HELLO, reasoning_effort="low")


def test_raw_generation_is_plain_text() -> None:
    with says(f"{THINK}{FINAL}ok<|return|>") as model:
        prompt = cast(Any, model.chat_format).render([Message("user", "q")])
        reply = model.generate(prompt, max_tokens=11)
        assert (reply.text, reply.reasoning) == ("analysisL", None)  # control tokens have no text in this tokenizer


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_end_one_answer_only(poison: float) -> None:
    with says(f"{FINAL}{'x' * 60}<|return|>") as model:
        healthy = model.chat(HELLO, stream=True)
        next(healthy)
        forward = model.script._logits

        def poisoned(history: list[int]) -> Any:
            return np.full_like(forward(history), poison) if ord("!") in history else forward(history)

        cast(Any, model.script)._logits = poisoned
        with pytest.raises(EngineError, match="the logits at position"):
            model.chat([{"role": "user", "content": "!"}])
        assert healthy.reply().text == "x" * 60


@pytest.mark.parametrize(("wishes", "temperature"), [({}, 1.0), ({"do_sample": True, "temperature": 0.5}, 0.5)])
def test_a_tokenizer_that_speaks_harmony_decides(
    monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], temperature: float
) -> None:
    monkeypatch.setattr("freehold.loading.load_tokenizer", lambda *files, **more: HarmonyByteTokenizer())
    checkpoint: Any = SimpleNamespace(
        path=Path("m"),
        tokenizer_json=Path("t"),
        gguf_metadata=None,
        tiktoken_model=None,
        tokenizer_config={},
        config={},
        chat_template="{{",
        generation_config=wishes,
    )
    _, chat_format, sampling = load_text(checkpoint)
    assert isinstance(chat_format, Harmony)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (temperature, 1.0, 0)
    assert {RETURN, CALL} <= sampling.stop_ids


def test_replies_compare_by_what_they_say() -> None:
    assert Message("assistant", "a", ids=(1, 2)) == Message("assistant", "a")
    assert "ids" not in Message("assistant", "a", ids=(1,)).to_dict()
    with pytest.raises(RequestError, match="carries ids"):
        Message("user", "a", ids=(1,))
    assert ToolCall("f", "{}").id is None
