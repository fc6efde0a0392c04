"""Chat Completions: what a request may say, what it means, and what is refused in which words."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from freehold.server.body import parse
from freehold.server.errors import ApiError
from freehold.server.openai_chat import ENDPOINTS, ChatBody, read_request
from freehold.server.service import ServiceLimits
from freehold.text.chat import Message, ToolCall
from freehold.text.request import ChatRequest, Grammar, NamedTool
from openai_scripted import ASK, Talker, talking
from scripted_model import HarmonyRoles, SwitchedTalk, harmony, scripted
from served import served

F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
G = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
PATCH = {"type": "custom", "custom": {"name": "patch"}}


def read(**body: Any) -> ChatRequest:
    raw = json.dumps({"model": "m", "messages": ASK, **body}).encode()
    return read_request(parse(raw, ChatBody), "key")


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**body)
    assert caught.value.status == 400
    return caught.value


def test_a_bare_request_leaves_everything_to_the_model() -> None:
    assert read() == ChatRequest((Message("user", "?"),), namespace="key")


def test_null_is_as_good_as_absent() -> None:
    fields = {name: None for name in ChatBody.model_fields if name not in ("model", "messages")}
    assert read(**fields, audio=None, functions=None, function_call=None) == read()


def test_what_has_no_meaning_here_is_accepted() -> None:
    accepted = {
        "store": True,
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "modalities": ["text"],
        "functions": [],
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    assert read(**accepted) == read()


def test_sampling_fields_reach_the_model() -> None:
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 1,
        "presence_penalty": -1,
        "seed": -7,
    }
    assert read(**sampling).sampling == sampling
    assert read(top_k=-1).sampling == {"top_k": 0}
    assert 0 < read(top_p=0).sampling["top_p"] < 1e-6
    assert read(logit_bias={"17": -100, "3": 2.5}).sampling == {"logit_bias": {17: -100, 3: 2.5}}
    assert read(logprobs=True).sampling == {"n_logprobs": 0}
    assert read(logprobs=True, top_logprobs=20).sampling == {"n_logprobs": 20}
    assert read(logprobs=False).sampling == {}


def test_limits_of_tokens_have_two_names() -> None:
    assert read(max_tokens=5).max_tokens == read(max_completion_tokens=5).max_tokens == 5
    assert read(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert "max_completion_tokens 6" in refused(max_tokens=5, max_completion_tokens=6).message


def test_stop_is_one_text_or_several() -> None:
    assert read(stop="a").stop == ("a",)
    assert read(stop=["a", "bc"]).stop == ("a", "bc")
    assert read(stop=[]).stop == ()


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"n": 1000000}, "n", "16"),
        ({"n": 0}, "n", "1"),
        ({"max_tokens": -1}, "max_tokens", "-1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "1"),
        ({"logprobs": True, "top_logprobs": 2000000000}, "top_logprobs", "20"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs true"),
        ({"temperature": "NaN"}, "temperature", "number"),
        ({"temperature": 2.5}, "temperature", "2"),
        ({"temperature": True}, "temperature", "number"),
        ({"top_p": 1.5}, "top_p", "1"),
        ({"frequency_penalty": 3}, "frequency_penalty", "2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0"),
        ({"stop": ["x"] * 10000}, "stop", "64"),
        ({"stop": ""}, "stop", "1 character"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "300"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"messages": []}, "messages", "1"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "text"),
        ({"service_tier": "flex"}, "service_tier", "default"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"audio": {"voice": "x"}}, "audio", "text"),
        ({"prediction": {"type": "content"}}, "prediction", "leave it out"),
        ({"web_search_options": {"user_location": {}}}, "web_search_options", "tools"),
        ({"functions": [{"name": "f"}]}, "functions", "`tools`"),
        ({"function_call": "auto"}, "function_call", "`tool_choice`"),
        ({"chat_template": "{{ x }}"}, "chat_template", "chat_template_kwargs"),
        ({"guided_json": {"type": "object"}}, "guided_json", "response_format"),
    ],
)
def test_a_wrong_field_is_named_with_its_limit(body: dict[str, Any], field: str, words: str) -> None:
    error = refused(**body)
    assert error.param == field
    assert words in error.message


def test_messages_of_every_role() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {"role": "user", "content": "u", "name": "ann"},
        {"role": "assistant", "content": None, "reasoning": "r", "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "t"},
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None, "function_call": None},
    ]
    assert read(messages=messages).messages == (
        Message("system", "s"),
        Message("developer", "d"),
        Message("user", "u", name="ann"),
        Message("assistant", "", reasoning="r", tool_calls=(ToolCall("f", "{}", "c1"),)),
        Message("tool", "t", tool_call_id="c1"),
        Message("assistant", "a"),
    )


def test_what_clients_add_to_messages() -> None:
    part = {"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}
    custom = {"id": "c1", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    messages = [
        {"role": "user", "content": [part, {**part, "prompt_cache_breakpoint": {"mode": "explicit"}}]},
        {"role": "assistant", "tool_calls": [custom]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    assert read(messages=messages).messages == (
        Message("user", "uu"),
        Message("assistant", "", tool_calls=(ToolCall("patch", "*** Begin", "c1", is_custom=True),)),
        Message("assistant", "No."),
        Message("assistant", "No."),
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "expected 'tool'"),
        ({"role": "robot", "content": "x"}, "one of system, developer, user, assistant, tool"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "no images"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "text is all"),
        ({"role": "user", "content": None}, "content is None"),
        ({"role": "user"}, "content is None"),
        ({"role": "user", "content": 5}, "content is 5"),
        ({"role": "user", "content": "x", "reasoning": "r"}, "only assistant messages"),
        ({"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}, "different texts"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "x", "input": 5}}]},
            "tool_calls[0]",
        ),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls"),
    ],
)
def test_a_wrong_message_is_refused_by_its_place(message: dict[str, Any], words: str) -> None:
    error = refused(messages=[*ASK, message])
    assert error.param == "messages[1]"
    assert "messages[1]" in error.message or "carries" in error.message
    assert words in error.message


@pytest.mark.parametrize(
    ("choice", "means"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "get"}}, NamedTool("get")),
        ({"type": "function", "name": "get"}, NamedTool("get")),
        ({"type": "custom", "custom": {"name": "patch"}}, NamedTool("patch")),
    ],
)
def test_choices_among_tools(choice: Any, means: Any) -> None:
    request = read(tools=[F, G, PATCH], tool_choice=choice)
    assert request.tool_choice == means
    assert [tool["type"] for tool in request.tools] == ["function", "function", "custom"]


def test_allowed_tools_are_all_that_is_offered() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get"}}]}
    request = read(tools=[F, G, PATCH], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (request.tools, request.tool_choice) == ((G,), "required")


def test_tools_may_be_written_flat() -> None:
    assert read(tools=[{"type": "function", **F["function"]}]).tools == (F,)  # type: ignore[dict-item]
    flat = {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "regex", "definition": "a+"}}
    assert read(tools=[flat]).tools[0]["custom"]["name"] == "p"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "'function' or 'custom'"),
        ({"tools": [{"type": "function", "function": "f"}]}, "an object"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "without blanks"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "JSON schema"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "true or false"),
        ({"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "x"}}}]}, "format"),
        ({"tools": [F, F]}, "a second tool named 'f'"),
        ({"tools": [F] * 257}, "256"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": "any", "tools": [F]}, "'auto', 'none', 'required'"),
        ({"tool_choice": {"type": "function", "function": {"name": "gett"}}, "tools": [F, G]}, "like 'get'"),
        ({"tool_choice": {"type": "function", "function": {}}, "tools": [F]}, "names no tool"),
        ({"tool_choice": {"type": "tool"}, "tools": [F]}, "'allowed_tools'"),
        ({"tool_choice": {"type": ["x"]}, "tools": [F]}, "'allowed_tools'"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x"}}, "tools": [F]}, "mode"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}, "tools": [F]}, "a list of tools"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [G]}, "tools": [F]}, "'get'"),
    ],
)
def test_wrong_tools_and_choices_are_refused(body: dict[str, Any], words: str) -> None:
    assert words in refused(**body).message


@pytest.mark.parametrize(
    ("data", "means"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("json", where="response_format")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            Grammar("json_schema", {"type": "object"}, strict=False, where="response_format.schema"),
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
            Grammar("json_schema", {}, where="response_format.schema"),
        ),
        ({"type": "grammar", "grammar": "start: /a/"}, Grammar("lark", "start: /a/", where="response_format")),
        ({"type": "regex", "regex": "a+"}, Grammar("regex", "a+", where="response_format")),
    ],
)
def test_response_formats(data: dict[str, Any], means: Grammar | None) -> None:
    assert read(response_format=data).answer == means


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "response_format.type is None"),
        ({"type": "xml"}, "'json_schema'"),
        ({"type": "json_schema"}, "schema"),
        ({"type": "json_schema", "json_schema": 5}, "an object"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": "{}"}}, "a JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}, "true or false"),
        ({"type": "regex"}, "response_format.regex is missing"),
    ],
)
def test_wrong_response_formats_are_refused(data: dict[str, Any], words: str) -> None:
    assert words in refused(response_format=data).message


def error_of(talker: Talker, **body: Any) -> dict[str, Any]:
    response = talker.post(**body)
    assert response.status_code == 400
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.fixture(scope="module")
def talker() -> Any:
    with talking("Paris", chat_format=SwitchedTalk) as talker:
        yield talker


def test_a_limit_beyond_the_room_is_cut_to_it(talker: Talker) -> None:
    assert talker.whole(max_tokens=2147483647)["choices"][0]["finish_reason"] == "stop"
    assert talker.whole(max_completion_tokens=10**30)["choices"][0]["finish_reason"] == "stop"


def test_a_prompt_that_does_not_fit_is_refused(talker: Talker) -> None:
    error = error_of(talker, messages=[{"role": "user", "content": "x" * 300}], stream=True)
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"
    assert "256" in error["message"]


def test_an_unknown_model_is_not_found(talker: Talker) -> None:
    response = talker.post(model="mm")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_bias_beyond_the_vocabulary_is_refused(talker: Talker) -> None:
    assert "logit_bias" in error_of(talker, logit_bias={"269": 1})["message"]


def test_unknown_fields_are_told(talker: Talker) -> None:
    response = talker.post(verbosity="low", temperature=0)
    assert response.status_code == 200
    assert response.headers["x-freehold-ignored"] == "verbosity"


def test_template_options_reach_the_format(talker: Talker) -> None:
    talker.whole(chat_template_kwargs={"enable_thinking": False})
    assert talker.model.chat_format.options == {"tools": None, "enable_thinking": False}  # type: ignore[union-attr]
    assert "which the request sets" in error_of(talker, chat_template_kwargs={"messages": []})["message"]


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ({}, "low"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "low"),
    ],
)
def test_effort_is_the_requests_then_the_servers_then_the_templates(said: dict[str, Any], heard: str) -> None:
    model = scripted(harmony("<|channel|>final<|message|>Hi<|return|>"), chat_format=HarmonyRoles)
    with served({"m": model}, ENDPOINTS, limits=ServiceLimits(effort="low")) as url:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **said}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-freehold-reasoning-effort"] == heard


def test_a_servers_effort_leaves_other_models_alone() -> None:
    with served({"m": scripted("Paris")}, ENDPOINTS, limits=ServiceLimits(effort="low")) as url:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        )
    assert answer.status_code == 200
    assert "x-freehold-reasoning-effort" not in answer.headers
