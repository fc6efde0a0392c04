"""OpenAI's Agents SDK for JavaScript: a loop of one tool, over both of OpenAI's protocols, streamed and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client_docs import snippet
from client_programs import installed, quiet_environment, run
from client_server import MODEL, THOUGHT, client_server

ITEMS = ["reasoning_item", "tool_call_item", "tool_call_output_item", "reasoning_item", "message_output_item"]
PATHS = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}


def weather(prompt: str) -> str:
    """Asks for the weather, then tells it."""
    if "sunny in Rome" in prompt:
        return THOUGHT + "<|channel|>final<|message|>It is sunny.<|return|>"
    return (
        THOUGHT + '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose scripts find the SDK."""
    (tmp_path / "node_modules").symlink_to(installed("agents"))
    return tmp_path


@pytest.mark.parametrize("how", ["whole", "stream"])
@pytest.mark.parametrize("api", ["responses", "chat"])
def test_a_loop_of_one_tool(api: str, how: str, folder: Path) -> None:
    script = folder / "agents_sdk.mjs"
    script.write_text(Path(__file__).with_name("agents_sdk.mjs").read_text("utf-8"), "utf-8")
    environment = quiet_environment(folder / "home")
    with client_server(weather) as server:
        said = json.loads(run(["node", script, f"{server.url}/v1", MODEL, api, how], folder, environment))
    assert not server.refused()
    assert said["calls"] == ["Rome"]
    assert said["items"] == ITEMS
    assert said["output"] == "It is sunny."
    assert said["streamed"] == (None if how == "whole" else "It is sunny.")
    first, second = said["usage"]
    assert second["inputTokens"] > first["inputTokens"]
    (cached,) = second["inputTokensDetails"]
    assert cached["cached_tokens"] >= first["inputTokens"] // 64 * 64 - 64  # all but the last block of the first turn
    asked = server.sent(PATHS[api])
    assert [body.get("stream") or False for body in asked] == [how == "stream"] * 2
    assert "sunny in Rome" in json.dumps(asked[1])
    # The model sees its own thought again: both protocols carry it back.
    assert "Let me see." in server.prompts[-1]


@pytest.mark.parametrize("responses", ["true", "false"])
def test_what_the_page_says(responses: str, folder: Path) -> None:
    script = folder / "page.mjs"
    with client_server(weather) as server:
        text = snippet("OpenAI Agents SDK", "js").at(server.url)
        script.write_text(text.replace("useResponses: true", f"useResponses: {responses}"), "utf-8")
        said = run(["node", script], folder, quiet_environment(folder / "home"))
    assert said == "It is sunny."
    assert not server.refused()
    assert len(server.sent(PATHS["responses" if responses == "true" else "chat"])) == 2
