"""Codex on a local model, with the settings of docs/clients.md: commands, patches, and how `--oss` looks for Ollama.

Runs where FREEHOLD_TEST_CODEX is set: the package is 400 MB. What it sends is replayed elsewhere, in test_replayed.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_docs import commands, exports, snippet
from client_goldens import keep
from client_programs import installed, quiet_environment, run
from client_server import MODEL, THOUGHT, ClientServer, client_server

PATCH = "*** Begin Patch\n*** Update File: note.txt\n@@\n-a fox\n+two foxes\n*** End Patch"
CALL = '<|channel|>commentary to=functions.exec_command <|constrain|>json<|message|>{"cmd":"cat note.txt"}<|call|>'
EDIT = f"<|channel|>commentary to=functions.apply_patch<|message|>{PATCH}<|call|>"
DONE = "<|channel|>final<|message|>Two foxes now.<|return|>"

Events = list[dict[str, Any]]
Codex = Callable[..., Events]


def editing(prompt: str) -> str:
    """Looks at the file, changes it, says so."""
    if "functions.apply_patch to=assistant" in prompt:
        return THOUGHT + DONE
    return THOUGHT + (EDIT if "functions.exec_command to=assistant" in prompt else CALL)


def looking(prompt: str) -> str:
    """Looks at the file, and is done."""
    return THOUGHT + (DONE if "functions.exec_command to=assistant" in prompt else CALL)


@pytest.fixture
def codex(tmp_path: Path) -> Codex:
    """Runs `codex exec` in a folder with one note; gives its events."""
    program = installed("codex", only_if="FREEHOLD_TEST_CODEX") / ".bin" / "codex"
    project = tmp_path / "project"
    project.mkdir()
    (project / "note.txt").write_text("a fox\n", "utf-8")

    def call(server: ClientServer, *options: str, **settings: str) -> Events:
        environment = quiet_environment(tmp_path / "home", settings)
        folder = tmp_path / "home" / ".codex"
        folder.mkdir(exist_ok=True)
        for language in ("toml", "json"):
            written = snippet("Codex", language)
            (folder / Path(written.file).name).write_text(written.at(server.url), "utf-8")
        fixed = ["--json", "--skip-git-repo-check", "--strict-config", "--sandbox", "danger-full-access"]
        said = run([program, "exec", *options, *fixed, "How many foxes?"], project, environment)
        return [json.loads(line) for line in said.splitlines()]

    return call


def done(events: Events, kind: str) -> Events:
    """The completed items of a kind."""
    ended = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in ended if item["type"] == kind]


def test_a_session_with_a_command_and_a_patch(codex: Codex, tmp_path: Path) -> None:
    with client_server(editing) as server:
        events = codex(server, "-p", "freehold")
    assert not server.refused()
    assert not done(events, "error")
    (command,) = done(events, "command_execution")
    assert (command["aggregated_output"], command["exit_code"]) == ("a fox\n", 0)
    assert [change["status"] for change in done(events, "file_change")] == ["completed"]
    assert (tmp_path / "project" / "note.txt").read_text("utf-8") == "two foxes\n"
    assert [item["text"] for item in done(events, "agent_message")] == ["Two foxes now."]
    first, second, third = server.sent("/v1/responses")
    assert [tool["name"] for tool in first["tools"] if tool["type"] == "custom"] == ["apply_patch"]
    assert [item["type"] for item in second["input"]][-3:] == ["reasoning", "function_call", "function_call_output"]
    assert "a fox" in second["input"][-1]["output"]
    assert [item["type"] for item in third["input"]][-3:] == [
        "reasoning",
        "custom_tool_call",
        "custom_tool_call_output",
    ]
    assert third["input"][-2]["input"] == PATCH
    (usage,) = [event["usage"] for event in events if event["type"] == "turn.completed"]
    assert usage["cached_input_tokens"] > 0.6 * usage["input_tokens"]  # of three turns, all but the first
    keep("codex", server)


def test_a_session_without_a_catalogue(codex: Codex) -> None:
    """Tools in a namespace, a search that is left out, and Codex's own long instructions."""
    with client_server(looking) as server:
        provider = f'model_providers.freehold={{name="Freehold",base_url="{server.url}/v1",wire_api="responses"}}'
        events = codex(server, "-c", provider, "-c", 'model_provider="freehold"', "-m", MODEL)
    assert not server.refused()
    assert [item["text"] for item in done(events, "agent_message")] == ["Two foxes now."]
    first, _ = server.sent("/v1/responses")
    assert {tool["type"] for tool in first["tools"]} == {"function", "namespace", "web_search"}
    keep("codex_bare", server)


def test_oss_takes_the_server_for_ollama(codex: Codex) -> None:
    (command,) = commands(snippet("Codex", "sh", 1).text)
    with client_server(looking) as server:
        variables = exports(snippet("Codex", "sh", 1).at(server.url))
        events = codex(server, *command[1:], **variables)
    assert not server.refused()
    assert [item["text"] for item in done(events, "agent_message")] == ["Two foxes now."]
    assert {request.path for request in server.requests} >= {"/api/version", "/api/tags", "/v1/responses"}
