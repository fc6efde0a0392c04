"""Claude Code on a local model, with the settings of docs/clients.md: a tool is called, its result comes back.

Runs where FREEHOLD_TEST_CLAUDE_CODE is set: the package is 240 MB. What it sends is replayed elsewhere, in
test_replayed.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_docs import commands, exports, snippet
from client_goldens import keep
from client_programs import installed, quiet_environment, run
from client_server import MODEL, THOUGHT, ClientServer, client_server

DONE = "<|channel|>final<|message|>A fox.<|return|>"
SETTINGS = snippet("Claude Code", "sh")

Claude = Callable[..., dict[str, Any]]


def looking(prompt: str) -> str:
    """Reads the note, then answers. The folder is in the question: the tool wants whole paths."""
    if "functions.Read to=assistant" in prompt:
        return THOUGHT + DONE
    (path,) = set(re.findall(r"Look at (\S+/note\.txt)", prompt))
    call = json.dumps({"file_path": path})
    return f"{THOUGHT}<|channel|>commentary to=functions.Read <|constrain|>json<|message|>{call}<|call|>"


def running(prompt: str) -> str:
    """Runs a command, then answers."""
    if "functions.Bash to=assistant" in prompt:
        return THOUGHT + DONE
    call = json.dumps({"command": "cat note.txt", "description": "Show the note"})
    return f"{THOUGHT}<|channel|>commentary to=functions.Bash <|constrain|>json<|message|>{call}<|call|>"


@pytest.fixture
def claude(tmp_path: Path) -> Claude:
    """Runs `claude -p` in a folder with one note; gives the result it prints."""
    program = installed("claude_code", only_if="FREEHOLD_TEST_CLAUDE_CODE")
    (native,) = program.glob("@anthropic-ai/claude-code-*/claude")
    project = tmp_path / "project"
    project.mkdir()
    (project / "note.txt").write_text("a fox\n", "utf-8")

    def call(server: ClientServer, *options: str, **settings: str) -> dict[str, Any]:
        environment = quiet_environment(tmp_path / "home", {**exports(SETTINGS.at(server.url)), **settings})
        fixed = ["--output-format", "json", "--allowedTools", "Read,Bash(cat:*)", "--max-turns", "4"]
        question = f"Look at {project}/note.txt. What is in it?"
        result: dict[str, Any] = json.loads(run([native, "-p", question, *options, *fixed], project, environment))
        return result

    return call


def check(result: dict[str, Any], server: ClientServer) -> None:
    assert not server.refused()
    assert (result["result"], result["is_error"], result["num_turns"]) == ("A fox.", False, 2)
    assert not result["permission_denials"]
    first, second = server.sent("/v1/messages")
    assert {body["model"] for body in (first, second)} == {MODEL}
    thought, call = second["messages"][-2]["content"]
    (outcome,) = second["messages"][-1]["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "Let me see.")
    assert (call["type"], outcome["type"], outcome["tool_use_id"]) == ("tool_use", "tool_result", call["id"])
    assert "a fox" in json.dumps(outcome["content"])


def test_a_session_with_few_tools(claude: Claude) -> None:
    """The command line of the page. All that the first turn read is found in the cache by the second."""
    (command,) = commands(SETTINGS.text)
    with client_server(looking) as server:
        result = claude(server, *command[1:])
    check(result, server)
    usage = result["usage"]
    assert usage["cache_read_input_tokens"] > 0.45 * (usage["input_tokens"] + usage["cache_read_input_tokens"])
    assert "billing-header" not in json.dumps(server.sent("/v1/messages"))
    keep("claude_code", server)


def test_a_session_with_all_tools_and_the_line_that_changes(claude: Claude) -> None:
    with client_server(running) as server:
        result = claude(server, CLAUDE_CODE_ATTRIBUTION_HEADER="1")
    check(result, server)
    first, _ = server.sent("/v1/messages")
    assert len(first["tools"]) > 15
    assert first["system"][0]["text"].startswith("x-anthropic-billing-header")
    assert "billing-header" not in server.prompts[0]
    keep("claude_code_full", server)
