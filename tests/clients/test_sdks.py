"""The Python of docs/clients.md, run as it stands but for the port: the SDKs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import pytest

from client_docs import snippet
from client_server import THOUGHT, client_server

PATHS = {
    "OpenAI SDK": ["/v1/chat/completions", "/v1/responses"],
    "Anthropic SDK": ["/v1/messages"],
    "Ollama's clients": ["/api/chat"],
}


def answering(prompt: str) -> str:
    return f"{THOUGHT}<|channel|>final<|message|>{'Red.' if 'sunset' in prompt else 'Blue.'}<|return|>"


@pytest.mark.parametrize("section", PATHS)
def test_what_the_page_says(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    with client_server(answering) as server:
        exec(compile(snippet(section, "python").at(server.url), "docs/clients.md", "exec"), {})
    assert not server.refused()
    assert [request.path for request in server.requests] == PATHS[section]
    assert capsys.readouterr().out.strip() == ("Blue.Red." if section == "OpenAI SDK" else "Blue.")
