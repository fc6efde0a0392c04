"""Chat Completions through OpenAI's own client: sync and async, streaming and not, and its helpers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from openai_scripted import ASK, Talk, Talker, shared_talkers, talking
from scripted_model import HarmonyRoles, PlainTalk, RoleTemplate, harmony

GET_WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = harmony(
    "<|channel|>analysis<|message|>Which city?<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
)


class City(BaseModel):
    name: str
    people: int


@pytest.fixture(scope="module")
def talk() -> Iterator[Talk]:
    with shared_talkers() as talk:
        yield talk


def test_an_answer(talk: Talk) -> None:
    talker = talk("Paris", chat_format=PlainTalk)
    answer = talker.openai.chat.completions.create(model="m", messages=ASK, n=2, seed=1, temperature=0.5)
    assert [choice.message.content for choice in answer.choices] == ["Paris", "Paris"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 12, 16)


def test_a_stream(talk: Talk) -> None:
    talker = talk("Paris", chat_format=PlainTalk)
    chunks = list(
        talker.openai.chat.completions.create(
            model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Paris"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 6 + ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 10


def test_tools(talk: Talk) -> None:
    talker = talk(CALL, chat_format=HarmonyRoles)
    answer = talker.openai.chat.completions.create(model="m", messages=ASK, tools=[GET_WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning"] == choice.message.model_extra["reasoning_content"] == "Which city?"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Rome"}')


def test_a_turn_that_is_sent_back_as_it_came(talk: Talk) -> None:
    talker = talk(CALL, chat_format=HarmonyRoles)
    create = talker.openai.chat.completions.create
    message = create(model="m", messages=ASK, tools=[GET_WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": (message.tool_calls or [])[0].id, "content": "sunny"}
    for turn in (message, message.model_dump()):
        history: Any = [*ASK, turn, result]
        assert create(model="m", messages=history, tools=[GET_WEATHER]).choices[0].finish_reason == "tool_calls"


def test_parsing_an_answer(talk: Talk) -> None:
    talker = talk('{"name":"Rome","people":3}', chat_format=RoleTemplate)
    answer = talker.openai.chat.completions.parse(model="m", messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Rome", people=3)


def test_parsing_a_call(talk: Talk) -> None:
    talker = talk(CALL, chat_format=HarmonyRoles)
    answer = talker.openai.chat.completions.parse(model="m", messages=ASK, tools=[GET_WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == {"city": "Rome"}


def test_the_stream_helper_ends_with_the_answer(talk: Talk) -> None:
    talker = talk(CALL, chat_format=HarmonyRoles)
    with talker.openai.chat.completions.stream(model="m", messages=ASK, tools=[GET_WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    plain = talker.openai.chat.completions.create(model="m", messages=ASK, tools=[GET_WEATHER])
    arguments = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(arguments) == '{"city":"Rome"}'
    assert final.choices[0].finish_reason == plain.choices[0].finish_reason
    streamed, whole = (answer.choices[0].message.model_dump() for answer in (final, plain))
    for message in (streamed, whole):
        for call in message["tool_calls"]:
            del call["id"]
            call.pop("index", None)  # the helper leaves it there
            call["function"].pop("parsed_arguments", None)
        message.pop("parsed", None)
    assert streamed == whole


def test_the_stream_helper_with_a_schema_and_logprobs(talk: Talk) -> None:
    talker = talk('{"name":"Rome","people":3}', chat_format=RoleTemplate)
    with talker.openai.chat.completions.stream(
        model="m", messages=ASK, response_format=City, logprobs=True, top_logprobs=1
    ) as stream:
        final = stream.until_done().get_final_completion()
    (choice,) = final.choices
    assert choice.message.parsed == City(name="Rome", people=3)
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert bytes(byte for token in tokens for byte in token.bytes or ()) == b'{"name":"Rome","people":3}'
    assert all(token.logprob <= 0 for token in tokens)
    assert any(token.top_logprobs and token.top_logprobs[0].token == token.token for token in tokens)


def test_async(talk: Talk) -> None:
    async def run(talker: Talker) -> None:
        async with openai.AsyncOpenAI(base_url=f"{talker.url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.chat.completions.create(model="m", messages=ASK) for _ in range(8)]
            answers = await asyncio.gather(*asked)
            assert {answer.choices[0].message.content for answer in answers} == {"Paris"}
            stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(pieces) == "Paris"

    talker = talk("Paris", chat_format=PlainTalk)
    asyncio.run(run(talker))


def test_errors_are_the_clients_own() -> None:
    with talking("Paris", chat_format=PlainTalk) as talker:
        with pytest.raises(openai.BadRequestError, match="top_logprobs") as bad:
            talker.openai.chat.completions.create(model="m", messages=ASK, top_logprobs=3)
        with pytest.raises(openai.NotFoundError, match="no model"):
            talker.openai.chat.completions.create(model="gpt-4o", messages=ASK)
        talker.model.script.answer = lambda prompt: bytes(1 // 0)
        with pytest.raises(openai.APIError, match="the server's log"):
            list(talker.openai.chat.completions.create(model="m", messages=ASK, stream=True))
    assert bad.value.param == "top_logprobs"
