"""Claude Code against the Messages API: requests in the shape it sends them, as its users have published it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from freehold.server.anthropic import endpoints, model_info, model_page
from freehold.server.resident import ModelCard
from messages_api import ANSWER, CALL, THOUGHT, Served, messages_api

EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}
BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,effort-2025-11-24"
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "authorization": "Bearer none",
    "user-agent": "claude-cli/2.1.120 (external, cli)",
    "x-app": "cli",
    "x-stainless-helper-method": "stream",
}
BASH: Any = {
    "name": "Bash",
    "description": "Runs a command.\n\nUsage notes:\n  - <example>ls</example>",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command", "minLength": 1},
            "timeout": {"type": "number", "description": "In ms", "minimum": 0, "exclusiveMaximum": 600001},
            "run_in_background": {"type": "boolean", "default": False},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
FETCH = {
    "name": "WebFetch",
    "description": "Fetches a page.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"url": {"type": "string", "format": "uri"}, "prompt": {"type": "string"}},
        "required": ["url", "prompt"],
        "additionalProperties": False,
    },
    "eager_input_streaming": True,
}
TODO = {
    "name": "TodoWrite",
    "description": "Keeps a list.",
    "input_schema": {
        "type": "object",
        "properties": {
            "todos": {
                "type": "array",
                "maxItems": 100,
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string", "minLength": 1, "maxLength": 65536},
                        "status": {"enum": ["pending", "in_progress", "completed"]},
                        "tags": {
                            "type": "object",
                            "propertyNames": {"pattern": "^[a-z]+$"},
                            "additionalProperties": {},
                        },
                        "parent": {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]},
                    },
                    "required": ["content", "status"],
                    "additionalProperties": False,
                },
            }
        },
    },
    "cache_control": EPHEMERAL,
}
REMINDER = "<system-reminder>\nAs you answer, you can use this context:\n# claudeMd\nUse tabs.\n</system-reminder>\n"


def billing(cch: str) -> str:
    return f"x-anthropic-billing-header: cc_version=2.1.120.cf9; cc_entrypoint=cli; cch={cch};"


def request(cch: str = "fa690", **changed: Any) -> dict[str, Any]:
    """The first request of a session."""
    rules = (
        "You are an interactive agent that helps users with software engineering.\n\n# Tone\nBe concise. " + "x" * 400
    )
    return {
        "model": "thinker",
        "max_tokens": 32000,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": REMINDER},
                    {"type": "text", "text": "list the files", "cache_control": EPHEMERAL},
                ],
            },
            {"role": "system", "content": "Available agent types for the Agent tool:\n- general-purpose"},
        ],
        "system": [
            {"type": "text", "text": billing(cch)},
            {"type": "text", "text": "You are Claude Code, Anthropic's official CLI.", "cache_control": EPHEMERAL},
            {"type": "text", "text": rules, "cache_control": {**EPHEMERAL, "scope": "global"}},
        ],
        "tools": [BASH, FETCH, TODO, *({**BASH, "name": f"mcp__server__tool_{i}"} for i in range(20))],
        "metadata": {"user_id": '{"device_id":"0","account_uuid":"","session_id":"1"}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 0,  # Claude Code's is 1; a scripted model must not be left to chance
        "stream": True,
        **changed,
    }


def send(api: Served, body: dict[str, Any], path: str = "/v1/messages") -> httpx.Response:
    return httpx.post(f"{api.url}{path}?beta=true", json=body, headers=HEADERS, timeout=30)


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with messages_api(context=16384) as serving:
        yield serving


def test_a_session(api: Served) -> None:
    api.says(THOUGHT + CALL.replace("get_weather", "Bash").replace('"city":"Paris"', '"command":"ls"'))
    answer = send(api, request())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-freehold-ignored"] == "context_management"
    assert '"partial_json":"{\\"command\\":\\"ls\\"}"' in answer.text
    assert '"stop_reason":"tool_use"' in answer.text
    system, user, late = api.messages
    assert system.content.startswith("You are Claude Code, Anthropic's official CLI.\n\nYou are an interactive agent")
    assert user.content == f"{REMINDER}\n\nlist the files"
    assert (late.role, api.requests[-1].default_effort) == ("system", "medium")
    assert [tool["function"]["name"] for tool in api.requests[-1].tools][:2] == ["Bash", "WebFetch"]

    api.says(ANSWER)
    turn = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Let me see.", "signature": "s"},
            {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls"}},
        ],
    }
    result = {"type": "tool_result", "tool_use_id": "toolu_01", "content": "a.py", "is_error": False}
    back = {"role": "user", "content": [result, {"type": "text", "text": REMINDER}]}
    answer = send(api, request("0aaa9", messages=[*request()["messages"], turn, back]))
    assert '"stop_reason":"end_turn"' in answer.text
    assert [message.role for message in api.messages] == ["system", "user", "system", "assistant", "tool", "user"]


def test_the_requests_beside_the_session(api: Served) -> None:
    api.says('<|channel|>final<|message|>{"title":"Files"}<|return|>')
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    form = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    title = request(tools=[], output_config=form, thinking={"type": "disabled"}, max_tokens=512, stream=False)
    assert send(api, title).json()["content"] == [{"type": "text", "text": '{"title":"Files"}'}]
    count = {name: request()[name] for name in ("model", "messages", "system", "tools")}
    assert send(api, count, "/v1/messages/count_tokens").json()["input_tokens"] > 5000
    search = request(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}])
    refused = send(api, search)
    assert refused.status_code == 400
    assert "web_search_20250305" in refused.json()["error"]["message"]


def test_the_schemas_of_the_tools_bind_the_calls(api: Served) -> None:
    def answered(said: str, choice: str, **more: Any) -> list[tuple[str, Any]]:
        api.says(said, bound=True)
        body = request(tool_choice={"type": choice, **more}, stream=False, max_tokens=150)
        blocks = send(api, body).json()["content"]
        return [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]

    call = CALL.replace("get_weather", "Bash").replace('"city":"Paris"', '"command":"ls"')
    assert answered(call, "auto") == answered(call, "any") == [("Bash", {"command": "ls"})]
    assert [name for name, _ in answered(call, "tool", name="TodoWrite")] == ["TodoWrite"]
    assert answered(call, "none") == []


def usage(api: Served, cch: str) -> dict[str, int]:
    counted: dict[str, int] = send(api, request(cch, stream=False)).json()["usage"]
    return counted


def test_the_line_that_always_differs_does_not_reach_the_prompt(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    api.says(ANSWER)
    with caplog.at_level(logging.WARNING, "freehold.server"), messages_api(endpoints(), context=16384) as fresh:
        fresh.says(ANSWER)
        cold, warm = usage(fresh, "36ee5"), usage(fresh, "0aaa9")
        answer = send(fresh, {**request(system=f"{billing('12345')}\nBe brief."), "stream": False})
    assert (cold["cache_read_input_tokens"], warm["input_tokens"] < 64) == (0, True)
    assert "x-anthropic-billing-header" in answer.headers["x-freehold-warning"]
    assert fresh.messages[0].content == "Be brief."
    assert sum("billing" in record.message for record in caplog.records) == 1


def test_the_line_can_be_kept() -> None:
    with messages_api(endpoints(drop_billing_line=False), context=16384) as api:
        api.says(ANSWER)
        usage(api, "36ee5")
        assert usage(api, "0aaa9")["input_tokens"] > 500
        assert api.messages[0].content.startswith(billing("0aaa9"))


def test_models_as_anthropic_lists_them() -> None:
    card = ModelCard("gpt-oss", 0, loaded=True, n_bytes=None, context=4096)
    assert model_info(card) == {
        "type": "model",
        "id": "gpt-oss",
        "display_name": "gpt-oss",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 4096,
    }
    page = model_page([card])
    assert (page["data"], page["first_id"], page["has_more"]) == ([model_info(card)], "gpt-oss", False)
    assert model_page([])["first_id"] is None
