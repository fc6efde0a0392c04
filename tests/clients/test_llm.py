"""The `llm` program with the settings of docs/clients.md: chat, streamed and not, tools and schemas."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client_docs import commands, snippet
from client_programs import quiet_environment, run
from client_server import MODEL, THOUGHT, ClientServer, client_server

PATH = "/v1/chat/completions"
CALL = "<|channel|>commentary to=functions.llm_time <|constrain|>json<|message|>{}<|call|>"
MOON = '{"name":"Armstrong","year":1969}'

Llm = Callable[..., str]


@pytest.fixture
def llm(tmp_path: Path) -> Llm:
    """Runs a command of llm's, in a home that holds its settings; gives what it prints."""

    def call(server: ClientServer, *words: str) -> str:
        settings = snippet("llm", "yaml")
        (tmp_path / settings.file).write_text(settings.at(server.url), "utf-8")
        environment = quiet_environment(tmp_path / "home", {"LLM_USER_PATH": str(tmp_path)})
        return run([sys.executable, "-m", "llm", *words], tmp_path, environment)

    return call


def talking(prompt: str) -> str:
    """Tells the time by the tool, a man of the moon in JSON, and else says hello."""
    if "utc_time" in prompt:
        return THOUGHT + "<|channel|>final<|message|>Late.<|return|>"
    if "llm_time" in prompt:
        return THOUGHT + CALL
    return f"{THOUGHT}<|channel|>final<|message|>{MOON if 'moon' in prompt else 'Hello.'}<|return|>"


def test_a_chat(llm: Llm) -> None:
    question, *_ = commands(snippet("llm", "sh").text)
    with client_server(talking) as server:
        assert llm(server, *question[1:]) == "Hello.\n"
        assert llm(server, *question[1:], "--no-stream", "-s", "Be brief.") == "Hello.\n"
        assert llm(server, "-c", "And?") == "Hello.\n"
    assert not server.refused()
    streamed, whole, third = server.sent(PATH)
    assert (streamed["stream"], whole.get("stream", False), third["stream"]) == (True, False, True)
    assert {body["model"] for body in (streamed, whole, third)} == {MODEL}
    assert [message["role"] for message in third["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("how", [(), ("--no-stream",)])
def test_a_tool(llm: Llm, how: tuple[str, ...]) -> None:
    _, question, _ = commands(snippet("llm", "sh").text)
    with client_server(talking) as server:
        assert llm(server, *question[1:], *how) == "Late.\n"
    assert not server.refused()
    _, second = server.sent(PATH)
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]


def test_a_schema(llm: Llm) -> None:
    _, _, question = commands(snippet("llm", "sh").text)
    with client_server(talking) as server:
        assert json.loads(llm(server, *question[1:])) == json.loads(MOON)
    (body,) = server.sent(PATH)
    assert body["response_format"]["type"] == "json_schema"
