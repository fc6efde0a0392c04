"""Turns remembered: found by the same conversation alone, bounded; over HTTP, what makes the cached prefix hold."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core import KV_BLOCK
from freehold.reply import Reply
from freehold.server.ollama import ENDPOINTS
from freehold.server.turns import Turns
from freehold.text.chat import Message, ToolCall
from freehold.text.harmony import Harmony
from freehold.text.literals import Literals
from freehold.text.request import ChatRequest
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer
from ollama_scripted import Talker
from scripted_model import (
    ASSISTANT,
    EOS,
    SPLIT,
    SYSTEM,
    USER,
    ByteTokenizer,
    HarmonyByteTokenizer,
    RoleTemplate,
    ScriptedLocalModel,
    harmony,
    scripted,
)
from served import served

QUESTION = [Message("system", "Be brief."), Message("user", "Why?")]
ARGUMENTS = '{"b": 1, "a": [1.0, "x"]}'


def reply(text: str = "Because.", ids: Sequence[int] = (1, 2, 3), **fields: Any) -> Reply:
    return Reply(text, "stop", 1, 0, len(ids), 0.0, 0.0, ids=tuple(ids), **fields)


def kept(answer: Reply, **limits: int) -> Turns:
    turns = Turns(**limits)
    turns.keep("m", "", QUESTION, answer)
    return turns


def recalled(turns: Turns, said: Message, *, model: str = "m", namespace: str = "") -> Message:
    *_, message, _ = turns.recall(model, namespace, [*QUESTION, said, Message("user", "And?")])
    return message


def test_the_same_turn_gets_its_ids() -> None:
    turns = kept(reply())
    for content in ("Because.", "Because.\n", "  Because."):
        message = recalled(turns, Message("assistant", content))
        assert (message.ids, message.content, message.reasoning) == ((1, 2, 3), content, None)


@pytest.mark.parametrize(
    "said",
    [
        Message("assistant", "because."),
        Message("assistant", "Because."[:-1]),
        Message("assistant", "Because.", name="x"),
        Message("assistant", "Because.", tool_calls=(ToolCall("f", "{}"),)),
        Message("user", "Because."),
    ],
)
def test_an_edited_turn_gets_none(said: Message) -> None:
    assert recalled(kept(reply()), said).ids is None


def test_turns_are_not_shared() -> None:
    turns = kept(reply())
    said = Message("assistant", "Because.")
    assert recalled(turns, said, model="other").ids is None
    assert recalled(turns, said, namespace="other").ids is None
    assert recalled(turns, said, model="", namespace="m").ids is None


def test_nothing_is_found_after_an_edit() -> None:
    turns = kept(reply())
    first = [*QUESTION, Message("assistant", "Because."), Message("user", "And?")]
    turns.keep("m", "", first, reply("So.", (4,)))
    second = [*first, Message("assistant", "So.")]
    assert [message.ids for message in turns.recall("m", "", second)] == [None, None, (1, 2, 3), None, (4,)]
    for i, change in (
        (0, Message("system", "Be brief. ")),
        (1, Message("user", "why?")),
        (2, Message("assistant", "B")),
    ):
        edited = [*second[:i], change, *second[i + 1 :]]
        found = [message.ids for message in turns.recall("m", "", edited)]
        assert found == [None] * 5
    later = [*second[:3], Message("user", "And then?"), second[4]]
    assert [message.ids for message in turns.recall("m", "", later)] == [None, None, (1, 2, 3), None, None]


@pytest.mark.parametrize(
    "written", [ARGUMENTS, '{"a":[1,"x"],"b":1}', '\n{"a": [1, "x"], "b": 1.0} ', '{"a":[1e0,"x"],"b":1}']
)
def test_calls_are_the_same_however_their_json_is_written(written: str) -> None:
    calls = (ToolCall("f", ARGUMENTS, "call_1"),)
    turns = kept(reply("", tool_calls=calls, reasoning="Hm."))
    message = recalled(turns, Message("assistant", "", tool_calls=(ToolCall("f", written, "other_id"),)))
    assert (message.ids, message.tool_calls[0].id) == ((1, 2, 3), "other_id")
    for changed in ('{"a": [1, "y"], "b": 1}', '{"a": [1, "x"]}', "not json"):
        assert recalled(turns, Message("assistant", "", tool_calls=(ToolCall("f", changed),))).ids is None


def test_arguments_that_are_not_json_are_compared_as_text() -> None:
    turns = kept(reply("", tool_calls=(ToolCall("python", "print(1)\n"),)))
    assert recalled(turns, Message("assistant", "", tool_calls=(ToolCall("python", "print(1)"),))).ids
    assert not recalled(turns, Message("assistant", "", tool_calls=(ToolCall("python", "print(2)"),))).ids
    turns = kept(reply("", tool_calls=(ToolCall("now", ""),)))
    assert recalled(turns, Message("assistant", "", tool_calls=(ToolCall("now", "{}"),))).ids


def test_reasoning_comes_back_where_a_call_needs_it() -> None:
    calls = (ToolCall("f", "{}"),)
    turns = kept(reply("", tool_calls=calls, reasoning="Hm."))
    assert recalled(turns, Message("assistant", "", tool_calls=calls)).reasoning == "Hm."
    assert recalled(turns, Message("assistant", "", "", tool_calls=calls)).reasoning == "Hm."
    own = recalled(turns, Message("assistant", "", "Hm.\n", tool_calls=calls))
    assert (own.reasoning, own.ids) == ("Hm.\n", (1, 2, 3))
    edited = recalled(turns, Message("assistant", "", "Ha.", tool_calls=calls))
    assert (edited.reasoning, edited.ids) == ("Ha.", None)


def test_reasoning_of_an_answer_stays_away() -> None:
    turns = kept(reply(reasoning="Hm."))
    message = recalled(turns, Message("assistant", "Because."))
    assert (message.reasoning, message.ids) == (None, (1, 2, 3))


def test_the_least_recently_used_is_forgotten() -> None:
    turns = Turns(max_entries=2)
    for i in range(2):
        turns.keep("m", "", QUESTION, reply(f"answer {i}", (i,)))
    assert recalled(turns, Message("assistant", "answer 0")).ids == (0,)
    turns.keep("m", "", QUESTION, reply("answer 2", (2,)))
    found = [recalled(turns, Message("assistant", f"answer {i}")).ids for i in range(3)]
    assert (found, len(turns)) == ([(0,), None, (2,)], 2)


def test_memory_is_bounded() -> None:
    turns = Turns(max_bytes=10_000)
    for i in range(50):
        turns.keep("m", "", QUESTION, reply(f"answer {i}", range(300), reasoning="x" * 100))
    assert 0 < len(turns) < 6
    turns.keep("m", "", QUESTION, reply("long", range(10_000)))
    assert recalled(turns, Message("assistant", "long")).ids is None
    for _ in range(100):  # the same turn again takes no more
        turns.keep("m", "", QUESTION, reply("answer 49", range(300), reasoning="x" * 100))
    assert len(turns) >= 2


def test_threads() -> None:
    turns = Turns(max_entries=8)
    errors = []

    def work(seed: int) -> None:
        try:
            for i in range(200):
                turns.keep("m", "", QUESTION, reply(f"answer {(i + seed) % 20}", (i,)))
                recalled(turns, Message("assistant", f"answer {i % 20}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, len(turns)) == ([], 8)


TEXT = st.text(max_size=6)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT), max_size=2).map(tuple)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["user", "system", "tool"]), TEXT, name=st.none() | TEXT)
    | st.builds(Message, st.just("assistant"), TEXT, st.none() | TEXT, CALLS),
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(MESSAGES, TEXT, CALLS)
def test_any_conversation_is_found_again(messages: list[Message], text: str, calls: tuple[ToolCall, ...]) -> None:
    turns = Turns()
    turns.keep("m", "n", messages, reply(text, tool_calls=calls))
    said = Message("assistant", text, tool_calls=calls)
    recalled = turns.recall("m", "n", [*messages, said])
    assert recalled[-1].ids == (1, 2, 3)
    assert [message.content for message in recalled] == [message.content for message in [*messages, said]]


# Over HTTP: any protocol will do, this is Ollama's.


class TemplateTokenizer(ByteTokenizer):
    """The bytes, with control tokens that a template can write."""

    special_ids: Mapping[str, int] = {
        **ByteTokenizer.special_ids,
        "<|system|>": SYSTEM,
        "<|user|>": USER,
        "<|assistant|>": ASSISTANT,
    }
    tags = frozenset[str]()
    controls = Literals(special_ids)
    eos_id = EOS

    def token_bytes(self, token_id: int) -> bytes:
        named = {id: text.encode() for text, id in self.special_ids.items()}
        return named.get(token_id) or super().token_bytes(token_id)


def template() -> ChatTemplate:
    source = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return ChatTemplate(source, cast(Tokenizer, TemplateTokenizer()))


class RealHarmony(Harmony):
    """gpt-oss's own format over bytes; it binds nothing."""

    def __init__(self) -> None:
        super().__init__(cast(Tokenizer, HarmonyByteTokenizer()))

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        return None


def served_by(chat_format: Callable[[], Any], *answers: Sequence[int]) -> ScriptedLocalModel:
    """A model that gives the next of its answers after each prompt."""
    model = scripted(b"", chat_format=cast(type[RoleTemplate], chat_format), context=2048)
    script = model.script
    steps = iter(id for ids in answers for id in ids)
    script._next = lambda history: next(steps) if history else 0  # type: ignore[method-assign]
    return model


def blocks(n_tokens: int) -> int:
    """Tokens in whole blocks, which are what the cache keeps."""
    return n_tokens // KV_BLOCK * KV_BLOCK


def conversation(model: ScriptedLocalModel, first: Sequence[int], second_question: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the first prompt and its answer that the cache must hold, and those the second request found in it."""
    with served({"m": model}, ENDPOINTS) as url, Talker(url, {"m": model}) as talker:
        messages: list[Any] = [{"role": "user", "content": "Tell me of the euro. " * 5}]
        one = talker.whole(messages=messages, options={"temperature": 0})
        assert one["eval_count"] == len(first)
        message = one["message"]
        message.pop("thinking", None)  # as clients do
        two = talker.whole(messages=[*messages, message, second_question], options={"temperature": 0})
        assert two["done_reason"] == "stop"
    return one["prompt_eval_count"] + one["eval_count"], two["prompt_eval_cached_count"]


def test_the_second_turn_of_a_template_finds_the_first_in_the_cache() -> None:
    euros = [id for _ in range(40) for id in (SPLIT, 0xAC, *b" and ")]
    assert ByteTokenizer().encode(ByteTokenizer().decode(euros)) != euros  # cut as no encoder would
    first = [*euros, EOS]
    model = served_by(template, first, [*b"So.", EOS])
    said, cached = conversation(model, first, {"role": "user", "content": "And the dollar?"})
    assert cached >= blocks(said - 1)  # the end token was sampled, but never read


@pytest.mark.parametrize("recipient_in", ["role", "channel"])
def test_the_second_turn_of_harmony_finds_the_first_in_the_cache(recipient_in: str) -> None:
    think = f"<|channel|>analysis<|message|>{'Let me look it up. ' * 8}<|end|><|start|>assistant"
    call = {
        "role": " to=functions.rate<|channel|>commentary json<|message|>",
        "channel": "<|channel|>commentary to=functions.rate <|constrain|>json<|message|>",
    }[recipient_in]
    first = harmony(f'{think}{call}{{"of" :  "euro"}}<|call|>')
    model = served_by(RealHarmony, first, harmony("<|channel|>final<|message|>1.1<|return|>"))
    said, cached = conversation(model, first, {"role": "tool", "content": "1.1", "tool_name": "rate"})
    assert cached >= blocks(said - 1)


def test_an_answer_of_harmony_leaves_its_thoughts_behind() -> None:
    """The prompt drops reasoning that led to an answer, so the cache holds up to the question."""
    first = harmony(
        f"<|channel|>analysis<|message|>{'Hm. ' * 20}<|end|><|start|>assistant<|channel|>final<|message|>A.<|return|>"
    )
    model = served_by(RealHarmony, first, harmony("<|channel|>final<|message|>B.<|return|>"))
    said, cached = conversation(model, first, {"role": "user", "content": "And?"})
    assert blocks(said - len(first)) <= cached < said


def test_json_round_trip_of_a_call_is_the_same_turn() -> None:
    """What a client makes of arguments that came as an object."""
    calls = (ToolCall("f", ARGUMENTS),)
    turns = kept(reply("", tool_calls=calls))
    back = Message.from_dict(
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": json.loads(ARGUMENTS)}}]}
    )
    assert recalled(turns, back).ids
