"""What Codex and Claude Code sent in their sessions, sent again: their tools, their schemas, their second turns."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from client_goldens import recording
from client_server import THOUGHT, ClientServer, Script, client_server

PATCH = "*** Begin Patch\n*** Add File: a.txt\n+one\n*** End Patch"
DONE = "<|channel|>final<|message|>Done.<|return|>"


def call(name: str, **arguments: Any) -> str:
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{THOUGHT}{header}{json.dumps(arguments)}<|call|>"


RUN = call("exec_command", cmd="ls", yield_time_ms=500)
EDIT = f"{THOUGHT}<|channel|>commentary to=functions.apply_patch<|message|>{PATCH}<|call|>"
PLAN = call("multi_agent_v1__close_agent", target="a")
READ = call("Read", file_path="/a.txt", limit=5)
BASH = call("Bash", command="ls", description="List files")

SESSIONS = {
    "codex": [RUN, EDIT, THOUGHT + DONE],
    "codex_bare": [PLAN, THOUGHT + DONE],
    "claude_code": [READ, THOUGHT + DONE],
    "claude_code_full": [BASH, THOUGHT + DONE],
}
EXPECTED: dict[str, list[Any]] = {
    "codex": [("exec_command", {"cmd": "ls", "yield_time_ms": 500}), ("apply_patch", PATCH), "Done."],
    "codex_bare": [("multi_agent_v1.close_agent", {"target": "a"}), "Done."],
    "claude_code": [("Read", {"file_path": "/a.txt", "limit": 5}), "Done."],
    "claude_code_full": [("Bash", {"command": "ls", "description": "List files"}), "Done."],
}


def in_turn(answers: list[str]) -> Script:
    """The next answer for each new prompt."""
    given: dict[str, str] = {}

    def script(prompt: str) -> str:
        if prompt not in given:
            given[prompt] = answers[len(given)]
        return given[prompt]

    return script


def send(server: ClientServer, request: dict[str, Any], *, stream: bool) -> Any:
    """Send a recorded request; what the answer is in the end: a call's name and arguments, or text."""
    body = {**request["body"], "stream": stream}
    answer = httpx.post(server.url + request["path"], json=body, headers=request["headers"], timeout=30)
    assert answer.status_code == 200, answer.text
    if not stream:
        whole = answer.json()
    elif request["path"] == "/v1/responses":
        *_, last = events(answer.text)
        assert last["type"] == "response.completed"
        whole = last["response"]
    else:
        whole = {"content": added_up(events(answer.text))}
    return said(whole.get("output") or whole["content"])


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def added_up(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content blocks of a stream of Messages."""
    blocks: list[dict[str, Any]] = []
    for piece in pieces:
        if piece["type"] == "content_block_start":
            blocks.append({**piece["content_block"], "json": ""})
        elif piece["type"] == "content_block_delta":
            delta = piece["delta"]
            blocks[piece["index"]]["json"] += delta.get("partial_json", "")
            blocks[piece["index"]]["text"] = blocks[piece["index"]].get("text", "") + delta.get("text", "")
    assert pieces[-1]["type"] == "message_stop"
    return [{**block, "input": json.loads(block["json"])} if block["json"] else block for block in blocks]


def said(items: list[dict[str, Any]]) -> Any:
    """The last item of an answer, whose first is the thought."""
    thought, item = items
    assert thought["type"] in ("reasoning", "thinking")
    if item["type"] in ("text", "message"):
        return item["text"] if item["type"] == "text" else item["content"][0]["text"]
    name = f"{item['namespace']}.{item['name']}" if item.get("namespace") else item["name"]
    if item["type"] == "function_call":
        return name, json.loads(item["arguments"])
    assert item["type"] in ("custom_tool_call", "tool_use")
    return name, item["input"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("session", SESSIONS)
def test_a_recorded_session(session: str, stream: bool) -> None:
    requests = recording(session)
    with client_server(in_turn(SESSIONS[session])) as server:
        answers = [send(server, request, stream=stream) for request in requests]
    assert answers == EXPECTED[session]


def test_tokens_of_a_recorded_prompt_are_counted() -> None:
    request = recording("claude_code")[-1]
    body = {name: value for name, value in request["body"].items() if name in ("model", "messages", "system", "tools")}
    with client_server(in_turn(SESSIONS["claude_code"][1:])) as server:
        send(server, request, stream=False)
        counted = httpx.post(f"{server.url}/v1/messages/count_tokens", json=body, timeout=30).json()
        (prompt,) = server.prompts
    # The scripted tokenizer has a token for each byte; control tokens are not in the text.
    assert 0 < counted["input_tokens"] - len(prompt.encode()) < 100
