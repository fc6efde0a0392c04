"""Turns as they were sampled, back in the prompt: unchanged where well-formed, rendered from their parts where not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.text.chat import Message, ToolCall
from freehold.text.harmony import Harmony
from freehold.text.harmony_replay import Replay
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.tokenizer import Tokenizer

OPTIONS: dict[str, Any] = {"current_date": "2025-06-28"}
STOCK = '{"sku":"A1"}'
THOUGHT = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
IN_CHANNEL = f"<|channel|>commentary to=functions.get_stock <|constrain|>json<|message|>{STOCK}<|call|>"
IN_ROLE = f" to=functions.get_stock<|channel|>commentary json<|message|>{STOCK}<|call|>"


@pytest.fixture(scope="module")
def tokenizer(small_harmony_tokenizer: Tokenizer) -> Tokenizer:
    return small_harmony_tokenizer


@pytest.fixture(scope="module")
def replay(tokenizer: Tokenizer, tokens: HarmonyTokens) -> Replay:
    return Replay(tokenizer, tokens)


def stock(ids: list[int], name: str = "get_stock", content: str = "") -> Message:
    """The turn `ids` as a parser reads it."""
    return Message("assistant", content, "hm", (ToolCall(name, STOCK, id="a"),), ids=tuple(ids))


@pytest.mark.parametrize("sampled", [IN_CHANNEL, IN_ROLE, THOUGHT + IN_CHANNEL, THOUGHT + IN_ROLE])
def test_sampled_calls_come_back_as_they_were(harmony: Harmony, tokenizer: Tokenizer, sampled: str) -> None:
    ids = tokenizer.encode(sampled, special=True)
    prompt = harmony.render([Message("user", "A1?")], **OPTIONS)
    result = Message("tool", "3", tool_call_id="a")
    history = harmony.render([Message("user", "A1?"), stock(ids), result], **OPTIONS)
    assert history[: len(prompt) + len(ids)] == prompt + ids
    text = tokenizer.decode(history[len(prompt) + len(ids) :])
    assert text == "<|start|>functions.get_stock to=assistant<|channel|>commentary<|message|>3<|end|><|start|>assistant"


def test_tokens_no_text_would_give_come_back_too(harmony: Harmony, tokenizer: Tokenizer) -> None:
    """The model may cut words otherwise than the tokenizer does, and stop inside a character."""
    letters = [id for letter in "hello" for id in tokenizer.encode(letter)]
    half = tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else []
    ids = [*tokenizer.encode("<|channel|>final<|message|>", special=True), *letters, *half]
    said = Message("assistant", "hello\ufffd", ids=tuple(ids))
    history = harmony.render([said], add_generation_prompt=False, **OPTIONS)
    assert history[-len(ids) - 1 :] == [*ids, 200007]


@pytest.mark.parametrize(
    ("sampled", "replayed"),
    [
        ("<|channel|>final<|message|>4<|return|>", "<|channel|>final<|message|>4<|end|>"),
        ("<|channel|>final<|message|>4", "<|channel|>final<|message|>4<|end|>"),
        ("<|channel|>final<|message|>4<|endoftext|>", "<|channel|>final<|message|>4<|end|>"),
        ("<|channel|>final<|message|>4<|call|>", "<|channel|>final<|message|>4<|end|>"),
        ("<|channel|>final<|message|>4<|end|>", "<|channel|>final<|message|>4<|end|>"),
        ("<|channel|>final<|message|>", "<|channel|>final<|message|><|end|>"),
        ("<|channel|>analysis<|message|>hm", "<|channel|>analysis<|message|>hm<|end|>"),
        ("<|message|>4<|return|>", "<|message|>4<|end|>"),
        (IN_ROLE.removesuffix("<|call|>"), IN_ROLE),
        (IN_CHANNEL.replace("<|call|>", "<|return|>"), IN_CHANNEL),
        (
            " to=python<|channel|>analysis code<|message|>1<|call|>",
            " to=python<|channel|>analysis code<|message|>1<|call|>",
        ),
    ],
)
def test_ends(replay: Replay, tokenizer: Tokenizer, sampled: str, replayed: str) -> None:
    (message,) = replay.split(tokenizer.encode(sampled, special=True)) or []
    assert tokenizer.decode(message.ids) == f"<|start|>assistant{replayed}"


@pytest.mark.parametrize(
    "sampled",
    [
        "",
        "<|return|>",
        "4<|return|>",  # no markup at all
        "<|channel|>final",  # cut inside a header
        THOUGHT,  # cut before one
        "<|channel|>?? we should answer <|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        "<|channel|>analysis junk here<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        "<|channel|>analysis<|message|>hm<|end|>4<|return|>",  # no start token
        "<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>4<|return|>",  # no end token
        "<|channel|>analysis<|message|>hm<|channel|>final<|message|>4<|return|>",
        "<|channel|>final<|message|>4<|end|><|start|>user<|message|>next?<|end|>",  # speaks for somebody else
        "<|channel|>final<|channel|>final<|message|>4<|return|>",
        "<|channel|>final<|message|>4<|constrain|><|return|>",
    ],
)
def test_a_malformed_turn_is_rendered_from_its_parts(harmony: Harmony, tokenizer: Tokenizer, sampled: str) -> None:
    ids = tuple(tokenizer.encode(sampled, special=True))
    messages = [Message("user", "2+2?"), Message("assistant", "4", ids=ids)]
    expected = harmony.render([messages[0], Message("assistant", "4")], **OPTIONS)
    assert harmony.render(messages, **OPTIONS) == expected


def test_repaired_and_removed_calls_are_rendered_from_their_parts(harmony: Harmony, tokenizer: Tokenizer) -> None:
    glued = tokenizer.encode(IN_CHANNEL.replace(" <|constrain|>", ""), special=True)
    assert "to=functions.get_stock<|channel|>" in harmony.render_text([stock(glued)], **OPTIONS)
    ids = tuple(tokenizer.encode(IN_ROLE, special=True))
    assert "get_stock" not in harmony.render_text([Message("assistant", "never mind", ids=ids)], **OPTIONS)
    bare = tokenizer.encode(IN_ROLE.replace("functions.", ""), special=True)
    assert " to=get_stock<|channel|>" in harmony.render_text([stock(bare)], **OPTIONS)


def test_replayed_reasoning_is_dropped_by_the_same_rule(harmony: Harmony, tokenizer: Tokenizer) -> None:
    answer = "<|channel|>final<|message|>three<|return|>"
    question, result = Message("user", "A1?"), Message("tool", "3", tool_call_id="a")
    call = stock(tokenizer.encode(THOUGHT + IN_CHANNEL, special=True))
    last = Message("assistant", "three", "hm", ids=tuple(tokenizer.encode(THOUGHT + answer, special=True)))
    running = harmony.render_text([question, call, result], **OPTIONS)
    assert running.count("analysis<|message|>hm") == 1
    text = harmony.render_text([question, call, result, last], **OPTIONS)
    assert "analysis<|message|>" not in text
    assert f"<|start|>assistant{IN_CHANNEL}<|start|>functions.get_stock to=assistant" in text
    assert text.endswith("<|start|>assistant<|channel|>final<|message|>three<|end|><|start|>assistant")


def test_a_function_called_on_the_analysis_channel_is_kept(harmony: Harmony, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(IN_CHANNEL.replace("commentary", "analysis"), special=True)
    messages = [stock(ids), Message("tool", "3", tool_call_id="a"), Message("assistant", "three")]
    assert harmony.render_text(messages, **OPTIONS).count("functions.get_stock") == 2


@pytest.mark.parametrize("channel", ["analysis", "commentary"])
def test_a_builtin_tool_answers_where_it_was_called(harmony: Harmony, tokenizer: Tokenizer, channel: str) -> None:
    ids = tokenizer.encode(f"<|channel|>{channel} to=python code<|message|>1+1<|call|>", special=True)
    call = Message("assistant", "", None, (ToolCall("python", "1+1", id="p"),), ids=tuple(ids))
    messages = [call, Message("tool", "2", tool_call_id="p")]
    assert f"python to=assistant<|channel|>{channel}<|message|>2" in harmony.render_text(messages, **OPTIONS)
    answered = harmony.render_text([*messages, Message("assistant", "two")], **OPTIONS)
    assert answered.count("python") == (0 if channel == "analysis" else 2)


CONTROL = st.sampled_from([200002, 200003, 200005, 200006, 200007, 200008, 200012, 199999, 200013])
IDS = st.lists(
    CONTROL | st.sampled_from([35644, 17196, 12606, 815, 173781, 65]) | st.integers(-5, 210_000), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(IDS)
def test_no_ids_make_it_raise(harmony: Harmony, ids: list[int]) -> None:
    turn = Message("assistant", "4", ids=tuple(ids))
    prompt = harmony.render([Message("user", "2+2?"), turn], **OPTIONS)
    assert 200002 not in prompt
    assert all(0 <= id < 201088 for id in prompt)
    # Every message of the prompt is whole: as many bodies as ends, and one start more, for the answer to come.
    n_starts, n_bodies = prompt.count(200006), prompt.count(200008)
    assert n_starts == n_bodies + 1 == prompt.count(200007) + prompt.count(200012) + 1
