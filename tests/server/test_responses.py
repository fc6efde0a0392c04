"""The Responses API on scripted models: what is answered, in one piece and streamed, which must be the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from freehold.text.tools import read_functions
from responses_scripted import CALL, FINAL, THOUGHT, WEATHER, Responder, added_up, responding
from scripted_model import PlainTalk, harmony

PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin" /[^*]+/ "*** End"'},
}
SHELL = {"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {"c": {"type": "string"}}}}


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Responder]:
    with responding("x") as server:
        yield server


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def text_of(item: dict[str, Any]) -> str:
    (part,) = item["content"]
    text: str = part["text"]
    return text


def test_thinking_and_an_answer_are_two_items() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        response = server.both()
    assert kinds(response) == ["reasoning", "message"]
    thought, message = response["output"]
    assert (text_of(thought), text_of(message)) == ("Let me see.", "It is sunny.")
    assert thought["summary"] == []
    assert thought["content"][0]["type"] == "reasoning_text"
    assert message["role"] == "assistant"
    assert message["content"][0] == {"type": "output_text", "text": "It is sunny.", "annotations": [], "logprobs": []}
    assert (response["status"], response["incomplete_details"], response["error"]) == ("completed", None, None)


def test_usage_counts_reasoning() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        usage = server.both()["usage"]
        cached = server.whole()["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": len("Let me see.")}
    assert usage["output_tokens"] == len(harmony(THOUGHT + FINAL))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert cached == usage


@pytest.mark.parametrize(
    "written",
    [
        '<|channel|>commentary to=functions.get_stock <|constrain|>json<|message|>{"sku":"A1"}<|call|>',
        ' to=functions.get_stock<|channel|>commentary json<|message|>{"sku":"A1"}<|call|>',
    ],
)
def test_a_call_wherever_the_recipient_stands(written: str) -> None:
    with responding(harmony(written)) as server:
        (call,) = server.both(tools=[{**SHELL, "name": "get_stock"}])["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "get_stock", '{"sku":"A1"}')
    assert call["id"].startswith("fc_")
    assert call["status"] == "completed"


@pytest.mark.parametrize(("offered", "called"), [(["shell"], "shell"), (["shell", "shelljson"], "shelljson")])
def test_a_glued_name_is_taken_apart_only_if_it_is_nobodys(offered: list[str], called: str) -> None:
    with responding(harmony('<|channel|>commentary to=functions.shelljson<|message|>{"c":"ls"}<|call|>')) as server:
        (call,) = server.both(tools=[{**SHELL, "name": name} for name in offered])["output"]
    assert call["name"] == called


def test_a_broken_header_costs_nothing_but_itself() -> None:
    written = "<|channel|>?? we should answer <|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>"
    with responding(harmony(written)) as server:
        (message,) = server.both()["output"]
    assert text_of(message) == "ok"


@pytest.mark.parametrize("written", ['{"ok":true}<|return|>', '<|channel|>final<|message|>{"ok":true}<|return|>'])
def test_an_answer_without_thinking_is_no_reasoning(written: str) -> None:
    with responding(harmony(written)) as server:
        response = server.both()
    assert kinds(response) == ["message"]
    assert text_of(response["output"][0]) == '{"ok":true}'


def test_arguments_that_are_not_json_are_passed_on() -> None:
    written = '<|channel|>commentary to=functions.shell <|constrain|>json<|message|>{"a":{"b":[1,2}<|call|>'
    with responding(harmony(written)) as server:
        (call,) = server.both(tools=[SHELL])["output"]
    assert call["arguments"] == '{"a":{"b":[1,2}'


def test_items_come_in_the_order_of_the_model() -> None:
    preamble = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
    with responding(harmony(THOUGHT + preamble + THOUGHT + CALL)) as server:
        response = server.both(tools=[WEATHER])
    assert kinds(response) == ["reasoning", "message", "reasoning", "function_call"]
    assert text_of(response["output"][1]) == "I will look."


def test_thinking_that_is_cut_off_is_an_incomplete_response() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        response = server.both(max_output_tokens=14)
        assert "raise it" in server.post(max_output_tokens=14).headers["x-freehold-warning"]
        assert server.openai.responses.create(model="m", input="?").status == "completed"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    (thought,) = response["output"]
    assert (thought["type"], thought["status"]) == ("reasoning", "incomplete")
    assert response["usage"]["output_tokens"] == 14
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == len(text_of(thought))


@pytest.mark.parametrize("written", ["<|return|>", "<|channel|>analysis<|message|>Hm.<|end|>"])
def test_an_answer_that_says_nothing_has_an_empty_message(written: str) -> None:
    with responding(harmony(written)) as server:
        response = server.both()
    assert kinds(response)[-1] == "message"
    assert text_of(response["output"][-1]) == ""


def test_a_custom_tool_takes_text() -> None:
    written = "<|channel|>commentary to=functions.apply_patch<|message|>*** Begin\n+x\n*** End<|call|>"
    with responding(harmony(written)) as server:
        (call,) = server.both(tools=[SHELL, PATCH])["output"]
        tools = server.model.asked.tools
    assert (call["type"], call["name"]) == ("custom_tool_call", "apply_patch")
    assert call["input"] == "*** Begin\n+x\n*** End"
    assert call["id"].startswith("ctc_")
    bound = read_functions(tools)[1].grammar
    assert bound is not None
    assert (bound.kind, bound.definition) == ("lark", PATCH["format"]["definition"])


def test_a_tool_in_a_namespace_keeps_both_names() -> None:
    tools = [
        SHELL,
        {"type": "namespace", "name": "agents", "description": "Helpers.", "tools": [{**SHELL, "name": "stop"}]},
    ]
    with responding(harmony('<|channel|>commentary to=functions.agents__stop<|message|>{"c":"a"}<|call|>')) as server:
        response = server.both(tools=tools)
        offered = server.model.asked.tools
    (call,) = response["output"]
    assert (call["namespace"], call["name"]) == ("agents", "stop")
    assert [tool["function"]["name"] for tool in offered] == ["shell", "agents__stop"]
    assert offered[1]["function"]["description"] == "Helpers."
    assert response["tools"][1] == tools[1]


def test_log_probabilities_have_true_bytes() -> None:
    with responding("€", chat_format=PlainTalk) as server:
        response = server.both(top_logprobs=2)
        included = server.both(include=["message.output_text.logprobs"])
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert bytes(byte for logprob in logprobs for byte in logprob["bytes"]).decode() == "€"
    assert all(len(logprob["top_logprobs"]) == 2 for logprob in logprobs)
    assert [logprob["top_logprobs"] for logprob in included["output"][0]["content"][0]["logprobs"]] == [[], [], []]


def test_a_response_repeats_its_request() -> None:
    asked_for: dict[str, Any] = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.9,
        "tool_choice": {"type": "function", "name": "get_weather"},
        "parallel_tool_calls": False,
        "user": "me",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
        "text": {"format": {"type": "json_object"}},
    }
    with responding(harmony(CALL)) as server:
        response = server.both(tools=[WEATHER], reasoning={"effort": "minimal", "summary": "auto"}, **asked_for)
        request = server.model.asked
    assert {key: response[key] for key in asked_for} == asked_for
    assert response["tools"] == [{**WEATHER, "description": None, "strict": None}]
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert (response["truncation"], response["background"], response["store"]) == ("disabled", False, True)
    assert request.answer is not None
    assert (request.reasoning_effort, request.parallel_calls, request.max_tokens) == ("minimal", False, 99)
    assert request.sampling == {"temperature": 0.5, "top_p": 0.9}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"background": True}, "background is not supported"),
        ({"conversation": "conv_1"}, "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt is not supported"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"n": 2}, "n is 2"),
        ({"input": []}, "input is empty"),
        ({"input": None}, "input is empty"),
        ({"max_output_tokens": 0}, "max_output_tokens is 0"),
        ({"top_logprobs": 21}, "top_logprobs is 21"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"truncation": "middle"}, 'truncation is "middle"'),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type is 'file_search'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type is 'web_search'"),
        ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]}, "tools[1].type is 'mcp'"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": [{"type": "shell"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "a"}]}, "tools[0] is a namespace"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice names 'x'"),
        ({"tools": [WEATHER, WEATHER]}, "a second tool named"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type is 'xml'"),
    ],
)
def test_what_is_refused_is_named(shared_server: Responder, body: dict[str, Any], words: str) -> None:
    error = shared_server.refused(**body)
    streamed = shared_server.refused(**body, stream=True)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert streamed == error


def test_what_has_no_effect_is_said_in_a_header() -> None:
    body = {
        "tools": [WEATHER, {"type": "web_search", "external_web_access": True}],
        "truncation": "auto",
        "reasoning": {"summary": "auto"},
        "text": {"verbosity": "low"},
        "client_metadata": {"a": 1},
    }
    with responding(harmony(FINAL)) as server:
        response = server.post(**body)
        tools = server.model.asked.tools
    warnings = response.headers["x-freehold-warning"]
    assert all(word in warnings for word in ("web_search", "truncation", "summarised", "verbosity"))
    assert response.headers["x-freehold-ignored"] == "client_metadata"
    assert [tool["name"] for tool in response.json()["tools"]] == ["get_weather"]
    assert [tool["function"]["name"] for tool in tools] == ["get_weather"]
    assert response.json()["truncation"] == "disabled"


def test_a_prompt_that_is_too_long_is_refused_and_not_cut() -> None:
    with responding("x", chat_format=PlainTalk, context=64) as server:
        error = server.refused(input="x" * 100, truncation="auto")
    assert error["code"] == "context_length_exceeded"


def test_allowed_tools_are_the_only_ones_offered() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "shell"}]}
    with responding(harmony(CALL)) as server:
        server.whole(tools=[WEATHER, SHELL], tool_choice=choice)
        request = server.model.asked
    assert request.tool_choice == "required"
    assert [tool["function"]["name"] for tool in request.tools] == ["shell"]


def test_a_model_that_dies_fails_the_stream() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        forward = server.model.script.forward
        steps = iter(range(20))

        def failing(batch: Any, kv: Any) -> Any:
            if next(steps, None) is None:
                raise RuntimeError("secret")
            return forward(batch, kv)

        server.model.script.forward = failing  # type: ignore[method-assign]
        events = server.events()
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["sequence_number"] == len(events) - 1
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in str(events)
    (thought,) = last["response"]["output"]
    assert thought["status"] == "incomplete"
    said = "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta")
    assert text_of(thought) == said != ""


def test_every_answer_of_a_stream_has_ids_of_its_own() -> None:
    with responding(harmony(THOUGHT + CALL)) as server:
        first, second = (added_up(server.events(tools=[WEATHER])) for _ in range(2))
    ids = [value for r in (first, second) for item in r["output"] for key, value in item.items() if key.endswith("id")]
    assert len(ids) == len(set(ids)) == 6
