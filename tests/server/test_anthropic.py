"""The Messages API as the anthropic client sees it: answers, streams, tools, thinking, counts, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from freehold.server.anthropic_stream import SIGNATURE
from freehold.text.chat import Message
from freehold.text.request import Grammar, NamedTool
from messages_api import ANSWER, CALL, THOUGHT, WEATHER, Served, messages_api

QUESTION: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with messages_api() as serving:
        yield serving


def ask(api: Served, model: str = "thinker", **options: Any) -> anthropic.types.Message:
    given: Any = {"messages": QUESTION, "max_tokens": 500, **options}
    message: anthropic.types.Message = api.client.messages.create(model=model, **given)
    return message


def stream(api: Served, model: str = "thinker", **options: Any) -> anthropic.types.Message:
    given = {"messages": QUESTION, "max_tokens": 500, **options}
    with api.client.messages.stream(model=model, **given) as running:
        return running.get_final_message()


def content(message: anthropic.types.Message) -> list[dict[str, Any]]:
    return [block.to_dict() for block in message.content]


def same(streamed: anthropic.types.Message, whole: anthropic.types.Message) -> bool:
    """Equal but for ids, and for how much of the prompt was cached by then."""
    one, other = (message.model_dump(exclude_none=True) for message in (streamed, whole))
    for message in (one, other):
        message.pop("id")
        message["usage"]["input_tokens"] += message["usage"].pop("cache_read_input_tokens")
        for block in message["content"]:
            block.pop("id", None)
    return one == other


def test_an_answer(api: Served) -> None:
    message = ask(api, "plain")
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "plain")
    assert content(message) == [{"type": "text", "text": "Paris"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len("Paris") + 1
    assert message._request_id is not None
    assert same(stream(api, "plain"), message)


def test_usage_tells_cached_from_new_and_adds_up(api: Served) -> None:
    options = {"messages": [{"role": "user", "content": "How often is this read? " * 8}]}
    cold, warm, streamed = ask(api, "plain", **options), ask(api, "plain", **options), stream(api, "plain", **options)
    count = api.client.messages.count_tokens(model="plain", messages=options["messages"]).input_tokens  # type: ignore[arg-type]
    for message in (cold, warm, streamed):
        usage = message.usage
        assert usage.cache_creation_input_tokens == 0
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count
    assert cold.usage.cache_read_input_tokens == 0
    assert streamed.usage == warm.usage
    assert (warm.usage.cache_read_input_tokens or 0) > count / 2


def test_thinking_then_text(api: Served) -> None:
    api.says(THOUGHT + ANSWER)
    message = ask(api)
    assert content(message) == [
        {"type": "thinking", "thinking": "Let me see.", "signature": SIGNATURE},
        {"type": "text", "text": "It is sunny."},
    ]
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == len("Let me see.")
    assert same(stream(api), message)


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ({"type": "disabled"}, None),
        ({"type": "enabled", "budget_tokens": 2000, "display": "omitted"}, ""),
        ({"type": "adaptive", "display": "summarized"}, "Let me see."),
    ],
)
def test_how_thinking_is_shown(api: Served, thinking: Any, expected: str | None) -> None:
    api.says(THOUGHT + ANSWER)
    message = ask(api, thinking=thinking)
    shown = [block.thinking for block in message.content if block.type == "thinking"]
    assert shown == ([] if expected is None else [expected])
    assert same(stream(api, thinking=thinking), message)


def test_tool_loop_with_thoughts_between(api: Served) -> None:
    api.says(f"{THOUGHT}<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant{CALL}")
    first = stream(api, tools=[WEATHER])
    thinking, text, call = first.content
    assert (thinking.type, text.type, call.type) == ("thinking", "text", "tool_use")
    assert call.type == "tool_use"
    assert call.id.startswith("toolu_")
    assert (call.name, call.input, first.stop_reason) == ("get_weather", {"city": "Paris"}, "tool_use")
    assert same(first, ask(api, tools=[WEATHER]))

    api.says(ANSWER)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = ask(api, messages=history, tools=[WEATHER])
    assert content(second) == [{"type": "text", "text": "It is sunny."}]
    _, turn, answered = api.messages
    assert (turn.content, turn.reasoning) == ("I look it up.", "Let me see.")
    assert turn.tool_calls[0].arguments == '{"city":"Paris"}'
    assert turn.ids is not None  # recognised as what the model itself said
    assert answered == Message("tool", "sunny", tool_call_id=turn.tool_calls[0].id, name="get_weather")


def test_async_client_and_the_beta_path(api: Served) -> None:
    api.says(CALL)

    async def both() -> tuple[Any, Any]:
        async with anthropic.AsyncAnthropic(base_url=api.url, api_key="none") as client:
            options: Any = {"model": "thinker", "max_tokens": 500, "messages": QUESTION, "tools": [WEATHER]}
            whole = await client.beta.messages.create(**options, betas=["claude-code-20250219"])
            async with client.messages.stream(**options) as running:
                return whole, await running.get_final_message()

    whole, streamed = asyncio.run(both())
    assert whole.content[0].input == streamed.content[0].input == {"city": "Paris"}


def wire(api: Served, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, by name."""
    given = {"model": "thinker", "max_tokens": 500, "messages": QUESTION, "stream": True, **body}
    text = httpx.post(f"{api.url}/v1/messages", json=given).text
    pairs = [event.split("\n", 1) for event in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_order_of_the_streaming_events(api: Served) -> None:
    api.says(THOUGHT + CALL)
    events = wire(api, tools=[WEATHER])
    assert all(name == data["type"] for name, data in events)
    runs = [name for i, (name, _) in enumerate(events) if i == 0 or name != events[i - 1][0]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert runs == ["message_start", *block, *block, "message_delta", "message_stop"]
    start = events[0][1]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert start["usage"]["input_tokens"] > events[-2][1]["usage"]["input_tokens"] > 0
    deltas = [data["delta"]["type"] for name, data in events if name == "content_block_delta"]
    assert deltas[-3:] == ["thinking_delta", "signature_delta", "input_json_delta"]


def test_input_of_eager_tools_comes_as_it_is_generated(api: Served) -> None:
    api.says(CALL)

    def pieces(**options: Any) -> list[str]:
        events = wire(api, **options)
        return [data["delta"]["partial_json"] for name, data in events if name == "content_block_delta"]

    assert pieces(tools=[WEATHER]) == ['{"city":"Paris"}']
    eager = pieces(tools=[{**WEATHER, "eager_input_streaming": True}])
    assert "".join(eager) == '{"city":"Paris"}'
    assert len(eager) > 5
    assert stream(api, tools=[{**WEATHER, "eager_input_streaming": True}]).content[0].input == {"city": "Paris"}  # type: ignore[union-attr]
    header = {"anthropic-beta": "fine-grained-tool-streaming-2025-05-14"}
    with api.client.messages.stream(
        model="thinker",
        max_tokens=500,
        messages=QUESTION,
        tools=[WEATHER],
        extra_headers=header,
    ) as running:
        assert sum(event.type == "input_json" for event in running) > 5


@pytest.mark.parametrize("arguments", ['{"a":{"b":[1,2}', "ls -la", '["a"]', '{"a": NaN}', '{"a": 1e999}', "[" * 300])
def test_arguments_that_are_no_object_are_handed_on_verbatim(api: Served, arguments: str) -> None:
    api.says(CALL.replace('{"city":"Paris"}', arguments))
    tool = {**WEATHER, "input_schema": {}}
    message = ask(api, tools=[tool])
    call = message.content[0]
    assert call.type == "tool_use"
    assert (call.input, message.stop_reason) == ({"INVALID_JSON": arguments}, "tool_use")
    assert same(stream(api, tools=[tool]), message)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "not JSON", "is_error": True}
    ask(
        api,
        messages=[*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}],
    )
    assert api.messages[1].tool_calls[0].arguments == arguments
    assert api.messages[2].content == "Error: not JSON"


def test_a_call_without_arguments(api: Served) -> None:
    api.says(CALL.replace('{"city":"Paris"}', ""))
    message = ask(api, tools=[WEATHER])
    assert message.content[0].input == {}  # type: ignore[union-attr]
    assert same(stream(api, tools=[WEATHER]), message)


def test_answers_without_markup_are_text(api: Served) -> None:
    for said in ('{"ok":true}<|return|>', '<|channel|>final<|message|>{"ok":true}<|return|>'):
        api.says(said)
        assert content(ask(api)) == [{"type": "text", "text": '{"ok":true}'}]


def test_junk_in_a_header_is_not_shown(api: Served) -> None:
    api.says("<|channel|>?? we should answer <|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>")
    assert content(ask(api)) == content(stream(api)) == [{"type": "text", "text": "ok"}]


def test_characters_are_whole_in_every_piece(api: Served) -> None:
    said = "日本😀é"
    api.says(f"<|channel|>final<|message|>{said}<|return|>")
    with api.client.messages.stream(model="thinker", max_tokens=100, messages=QUESTION) as running:
        pieces = list(running.text_stream)
        assert running.get_final_message().usage.output_tokens == len(said.encode()) + len("final") + 3
    assert "".join(pieces) == said
    assert all("�" not in piece for piece in pieces)


def test_thinking_that_uses_up_max_tokens(api: Served) -> None:
    api.says("<|channel|>analysis<|message|>A long thought")
    raw = api.client.messages.with_raw_response.create(model="thinker", max_tokens=16, messages=QUESTION)
    message = raw.parse()
    assert content(message) == [{"type": "thinking", "thinking": "A long", "signature": SIGNATURE}]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 16)
    assert "raise it" in raw.headers["x-freehold-warning"]
    assert same(stream(api, max_tokens=16), message)


def test_stop_sequences(api: Served) -> None:
    api.says("<|channel|>final<|message|>one two three<|return|>")
    message = ask(api, stop_sequences=["three", "two"])
    assert (content(message)[0]["text"], message.stop_reason, message.stop_sequence) == ("one ", "stop_sequence", "two")
    assert same(stream(api, stop_sequences=["three", "two"]), message)


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "between_tools"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}}, "high"),
        ({"output_config": {"effort": "xhigh"}, "thinking": {"type": "disabled"}}, "high"),
        ({"output_config": {"effort": "medium"}, "thinking": {"type": "enabled", "budget_tokens": 31999}}, "medium"),
    ],
)
def test_effort(api: Served, options: Any, effort: str | None) -> None:
    api.says(ANSWER)
    ask(api, **options)
    assert api.requests[-1].default_effort == effort


def test_a_model_without_effort_answers_all_the_same(api: Served) -> None:
    options: Any = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    raw = api.client.messages.with_raw_response.create(model="plain", max_tokens=50, messages=QUESTION, **options)
    assert content(raw.parse()) == [{"type": "text", "text": "Paris"}]
    assert "no reasoning effort" in raw.headers["x-freehold-warning"]


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}, NamedTool("get_weather"), False),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choice(api: Served, choice: Any, expected: Any, parallel: bool) -> None:
    api.says(CALL)
    ask(api, tools=[{**WEATHER, "strict": True}], **({} if choice is None else {"tool_choice": choice}))
    request = api.requests[-1]
    assert (request.tool_choice, request.parallel_calls, request.enforce) == (expected, parallel, True)
    function = {"name": "get_weather", "description": WEATHER["description"], "strict": True}
    assert request.tools == ({"type": "function", "function": {**function, "parameters": WEATHER["input_schema"]}},)


@pytest.mark.parametrize("field", ["output_config.format", "output_format"])
def test_the_form_of_the_answer(api: Served, field: str) -> None:
    api.says(ANSWER)
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    form = {"type": "json_schema", "schema": schema}
    ask(api, extra_body={"output_config": {"format": form}} if "." in field else {"output_format": form})
    assert api.requests[-1].answer == Grammar("json_schema", schema, where=field)


def test_conditions(api: Served) -> None:
    sampling = {"temperature": 1, "top_p": 0.5, "top_k": 0}
    ask(api, max_tokens=2**31 - 1, stop_sequences=["."], timeout=60, extra_body=sampling)
    request = api.requests[-1]
    assert request.sampling == sampling
    assert (request.stop, request.max_tokens) == ((".",), 2**31 - 1)


def test_count_tokens(api: Served) -> None:
    before = api.thinker.script.steps
    options: Any = {"model": "thinker", "messages": QUESTION, "system": "Be brief.", "tools": [WEATHER]}
    count = api.client.messages.count_tokens(**options).input_tokens
    assert api.thinker.script.steps == before
    usage = api.client.messages.create(**options, max_tokens=500).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    long: Any = [{"role": "user", "content": "x" * 5000}]
    assert api.client.messages.count_tokens(model="thinker", messages=long).input_tokens > 5000


def test_a_prompt_that_is_too_long(api: Served) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2047 maximum") as raised:
        stream(api, messages=[{"role": "user", "content": "x" * 3000}])
    assert raised.value.type == "invalid_request_error"


def test_a_model_that_is_not_there(api: Served) -> None:
    with pytest.raises(anthropic.NotFoundError, match="plain") as raised:
        ask(api, "plainn")
    assert raised.value.type == "not_found_error"


def test_a_model_that_fails_while_it_streams(api: Served) -> None:
    def fails(prompt: str) -> bytes:
        raise RuntimeError("secret")

    with messages_api() as broken:
        broken.thinker.script.answer = fails
        with pytest.raises(anthropic.APIStatusError) as raised:
            stream(broken)
        assert raised.value.type == "api_error"
        assert "secret" not in str(raised.value)
        with pytest.raises(anthropic.InternalServerError):
            ask(broken)
