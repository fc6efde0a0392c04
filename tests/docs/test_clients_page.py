"""docs/clients.md: every snippet parses, and says of the server what is true."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest

from client_docs import ADDRESS, PAGE, Snippet, commands, exports, snippets
from freehold.cli import app
from freehold.server.endpoints import all_endpoints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL = "gpt-oss-20b"
READERS: dict[str, Any] = {
    "json": json.loads,
    "python": ast.parse,
    "sh": commands,
    "toml": tomllib.loads,
    "yaml": importlib.import_module("yaml").safe_load,  # it comes with llm
}
TESTED_ELSEWHERE = {"js"}  # by running it
BASES = ("", "/v1")
"""What a client appends its paths to."""


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: f"{snippet.section}-{snippet.language}")
def test_a_snippet_parses(snippet: Snippet) -> None:
    if snippet.language not in TESTED_ELSEWHERE:
        assert READERS[snippet.language](snippet.text) or exports(snippet.text)
    if snippet.language in ("json", "toml", "yaml"):
        assert snippet.file.endswith(snippet.language), "a file without a name"


def test_addresses_lead_to_the_server() -> None:
    paths = {endpoint.path for endpoint in all_endpoints()}
    found = re.findall(r"https?://[^\s\"'`)]+", PAGE.read_text("utf-8"))
    local = [address for address in found if urlsplit(address).port is not None]
    assert len(local) > 10
    for address in local:
        parts = urlsplit(address)
        assert parts.port == default_port(), address
        assert parts.path in (*BASES, *paths), address
    assert urlsplit(ADDRESS).port == default_port()
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/tags"):
        assert path in paths


def test_commands_of_ours_exist() -> None:
    from typer.main import get_command

    ours: Any = get_command(app)
    written = re.findall(r"^freehold .*$|(?<=`)freehold [^`]+(?=`)", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(written) > 3
    for line in written:
        (words,) = commands(line)
        command = ours.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_client_has_a_section() -> None:
    listed = re.findall(r"^\| \[([^]]+)\]", PAGE.read_text("utf-8"), re.MULTILINE)
    assert listed == [section for section in dict.fromkeys(each.section for each in snippets()) if section in listed]
    assert len(listed) >= 10
    for section in listed:
        texts = [each.text for each in snippets() if each.section == section]
        assert any(MODEL in text or ADDRESS in text for text in texts), f"{section} names neither model nor server"


def default_port() -> int:
    from typer.main import get_command

    serve: Any = get_command(app)
    (port,) = (parameter.default for parameter in serve.commands["serve"].params if parameter.name == "port")
    return int(port)
