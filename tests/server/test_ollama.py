"""Ollama's chat and generate, asked by its own client and by hand: streamed or not, the same answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server import sse
from freehold.server.ollama_answer import RAW_ARGUMENTS
from ollama_scripted import ASK, Talker, talking
from scripted_model import EOS, USER, VOCAB, HarmonyTalk, PlainTalk

THINK = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
HELLO = f"{THINK}{FINAL}Hello, 日本😀!<|return|>"
CALL = "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{body}<|call|>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def talk() -> Iterator[Talker]:
    """A model that thinks, and answers what it is told to."""
    with talking(HELLO, HarmonyTalk) as talker:
        yield talker


def call(body: str, name: str = "weather") -> str:
    return f"{THINK}{CALL.format(name=name, body=body)}"


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what no two of them share."""
    for message in (answer, answer.get("message") or {}):
        for one in message.get("tool_calls", ()):
            one.pop("id")
    return {key: value for key, value in answer.items() if key not in (*DURATIONS, "created_at")}


def joined(lines: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What a client makes of the lines of a stream."""
    *_, last = lines
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    parts = [line["message"] if kind == "chat" else line for line in lines]
    text = "content" if kind == "chat" else "response"
    said: dict[str, Any] = {text: "".join(part[text] for part in parts)}
    if thinking := "".join(part.get("thinking", "") for part in parts):
        said["thinking"] = thinking
    if calls := [call for part in parts for call in part.get("tool_calls", ())]:
        said["tool_calls"] = calls
    logprobs = [item for line in lines for item in line.get("logprobs", ())]
    more = {"logprobs": logprobs} if logprobs else {}
    return {**last, **({"message": {"role": "assistant", **said}} if kind == "chat" else said), **more}


def both(talker: Talker, path: str = "/api/chat", **body: Any) -> dict[str, Any]:
    """The answer, which must be the same whether it is streamed or not; the cache is warm both times."""
    talker.whole(path, **body)
    whole = timeless(talker.whole(path, **body))
    assert timeless(joined(talker.lines(path, **body), path.rpartition("/")[2])) == whole
    return whole


def test_chat_with_the_vendors_client(talk: Talker) -> None:
    talk.says(HELLO)
    answer = talk.ollama.chat("m", ASK)
    stream = list(talk.ollama.chat("m", ASK, stream=True))
    assert answer.message.content == "Hello, 日本😀!"
    assert answer.message.thinking == "Let me see."
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "m")
    assert "".join(part.message.content or "" for part in stream) == answer.message.content
    assert "".join(part.message.thinking or "" for part in stream) == answer.message.thinking
    assert not any("\ufffd" in (part.message.content or "") for part in stream)
    last = stream[-1]
    assert (last.done, last.done_reason) == (True, "stop")
    assert (last.prompt_eval_count, last.eval_count) == (answer.prompt_eval_count, answer.eval_count)
    for each in (answer, last):
        assert (each.total_duration or 0) >= (each.load_duration or 0) + (each.eval_duration or 0) > 0


def test_chat_with_the_async_client() -> None:
    async def ask(url: str) -> tuple[str, str]:
        client = ollama.AsyncClient(url, timeout=20)
        answer = await client.chat("m", ASK)
        parts = [part.message.content or "" async for part in await client.chat("m", ASK, stream=True)]
        return answer.message.content or "", "".join(parts)

    with talking(HELLO) as talker:
        assert asyncio.run(ask(talker.url)) == ("Hello, 日本😀!", "Hello, 日本😀!")


def test_generate_with_the_vendors_client(talk: Talker) -> None:
    talk.says(HELLO)
    answer = talk.ollama.generate("m", "?", system="Be brief.")
    stream = list(talk.ollama.generate("m", "?", stream=True))
    messages = talk.model.chat_format.messages  # type: ignore[union-attr]
    assert (answer.response, answer.thinking, answer.done_reason) == ("Hello, 日本😀!", "Let me see.", "stop")
    assert "".join(part.response or "" for part in stream) == answer.response
    assert answer.context is None
    assert [message.role for message in messages] == ["user"]


def test_a_system_prompt_goes_first() -> None:
    with talking("ok", PlainTalk) as talker:
        talker.whole("/api/generate", system="Be brief.")
        assert [message.content for message in talker.asked.messages] == ["Be brief.", "?"]


def test_streaming_is_the_default_and_equals_not_streaming(talk: Talker) -> None:
    talk.says(HELLO)
    for path in ("/api/chat", "/api/generate"):
        answer = both(talk, path)
        assert answer["done"] is True
        assert len(talk.lines(path)) > 5


def test_counts() -> None:
    with talking("Paris", PlainTalk, context=512) as talker:
        question = [{"role": "user", "content": "x" * 70}]
        first, second = (talker.whole(messages=question) for _ in range(2))
    assert (first["prompt_eval_count"], first["eval_count"]) == (73, 6)  # BOS, USER, 70, ASSISTANT; Paris and its end
    assert (first["prompt_eval_cached_count"], second["prompt_eval_cached_count"]) == (0, 64)
    assert first["created_at"].endswith("Z")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_length(talk: Talker, path: str) -> None:
    talk.says(f"{THINK}{FINAL}Hello<|return|>")
    answer = both(talk, path, options={"num_predict": 21})
    said = answer["message"] if path == "/api/chat" else answer
    assert (answer["done_reason"], answer["eval_count"], said["thinking"]) == ("length", 21, "Let me see.")
    assert "raise num_predict" in answer["freehold_hint"]
    for unlimited in (-1, -2, 0, 10**9):
        assert both(talk, path, options={"num_predict": unlimited})["done_reason"] == "stop"


def test_a_call_comes_whole_with_its_arguments_as_an_object(talk: Talker) -> None:
    talk.says(call('{"place": "Rome", "n": [1, 2.5, null]}'))
    answer = both(talk, tools=[WEATHER])
    lines = talk.lines(tools=[WEATHER])
    by_client = talk.ollama.chat("m", ASK, tools=[WEATHER])
    (one,) = answer["message"]["tool_calls"]
    assert one == {
        "function": {"index": 0, "name": "weather", "arguments": {"place": "Rome", "n": [1, 2.5, None]}},
    }
    assert (answer["message"]["content"], answer["done_reason"]) == ("", "stop")
    assert sum("tool_calls" in line["message"] for line in lines) == 1
    (own,) = by_client.message.tool_calls or ()
    assert own.function.arguments["place"] == "Rome"


def test_several_calls_are_told_apart(talk: Talker) -> None:
    two = call('{"place":"Rome"}').replace("<|call|>", "<|end|><|start|>assistant") + CALL.format(
        name="weather", body='{"place":"Oslo"}'
    )
    talk.says(two)
    calls = both(talk, tools=[WEATHER])["message"]["tool_calls"]
    found = [(each["function"]["index"], each["function"]["arguments"]["place"]) for each in calls]
    assert found == [(0, "Rome"), (1, "Oslo")]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('{"a":{"b":[1,2}', {RAW_ARGUMENTS: '{"a":{"b":[1,2}'}),
        ("print(1)", {RAW_ARGUMENTS: "print(1)"}),
        ("[1]", {RAW_ARGUMENTS: "[1]"}),
        ('{"a": NaN}', {RAW_ARGUMENTS: '{"a": NaN}'}),
        ('{"a": 1e999}', {RAW_ARGUMENTS: '{"a": 1e999}'}),
        ("", {}),
    ],
)
def test_arguments_that_are_no_object_are_passed_on_verbatim(talk: Talker, written: str, found: dict[str, Any]) -> None:
    talk.says(call(written))
    answer = both(talk, tools=[WEATHER])
    (one,) = answer["message"]["tool_calls"]
    assert one["function"]["arguments"] == found
    assert ("freehold_hint" in answer) == bool(written)
    talk.whole(messages=[*ASK, answer["message"], {"role": "tool", "content": "5", "tool_name": "weather"}])
    _, back, result = talk.asked.messages
    assert back.tool_calls[0].arguments == (written or "{}")
    assert (result.name, result.content) == ("weather", "5")


def test_the_client_sends_a_whole_turn_back(talk: Talker) -> None:
    talk.says(call('{"place":"Rome"}'))
    message = talk.ollama.chat("m", ASK, tools=[WEATHER]).message
    talk.ollama.chat("m", [*ASK, message, {"role": "tool", "content": "5", "tool_name": "weather"}])
    _, said, result = talk.asked.messages
    assert (said.role, said.reasoning, said.tool_calls[0].name) == ("assistant", "Let me see.", "weather")
    assert json.loads(said.tool_calls[0].arguments) == {"place": "Rome"}
    assert (result.role, result.name) == ("tool", "weather")
    assert said.ids  # it is the turn that was sampled


def test_logprobs() -> None:
    with talking([0xE2, 0x82, 0xAC, EOS], PlainTalk) as talker:
        answer = both(talker, logprobs=True, top_logprobs=1)
        assert "logprobs" not in talker.whole()
        assert talker.refused(top_logprobs=1) == "top_logprobs is set without logprobs; expected logprobs true"
        by_client = talker.ollama.chat("m", ASK, logprobs=True, top_logprobs=1)
    assert [item["bytes"] for item in answer["logprobs"]] == [[0xE2], [0x82], [0xAC]]
    assert all(item["top_logprobs"][0]["bytes"] == item["bytes"] for item in answer["logprobs"])
    assert len(by_client.logprobs or ()) == 3


def test_an_answer_may_be_empty() -> None:
    with talking([EOS], PlainTalk) as talker:
        answer = both(talker)
    assert (answer["message"], answer["done_reason"]) == ({"role": "assistant", "content": ""}, "stop")


def test_an_error_within_a_stream_is_its_last_line() -> None:
    with talking("Paris", PlainTalk) as talker:
        forward = talker.model.script.forward

        def failing(batch: Any, kv: Any) -> Any:
            if talker.model.script.steps == 3:
                raise RuntimeError("secret")
            return forward(batch, kv)

        talker.model.script.forward = failing  # type: ignore[method-assign]
        *said, last = talker.lines()
        assert "".join(line["message"]["content"] for line in said) == "Par"
        assert last.keys() == {"error"}
        assert "the server's log says" in last["error"]
        assert "secret" not in last["error"]


def test_a_waiting_connection_shows_life_between_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = sse.EventStream.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "interval", 0.05)
    with talking("Paris", PlainTalk) as talker:
        talker.model.script.gate = threading.Semaphore(0)
        with talker.http.stream("POST", "/api/chat", json={"model": "m", "messages": ASK}) as response:
            raw = response.iter_raw()
            assert next(raw) == b" "
            talker.model.script.gate.release(100)
            rest = b"".join(raw)
        lines = [json.loads(line) for line in (b" " + rest).splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == "Paris"


IDS = st.lists(st.integers(0, VOCAB - 1).filter(lambda id: id not in (USER,)), max_size=40)


@settings(max_examples=25, deadline=None)
@given(IDS)
def test_any_ids_give_the_same_answer_streamed_or_not(talk: Talker, ids: list[int]) -> None:
    talk.says(ids)
    both(talk, tools=[WEATHER])
