"""What client programs sent, kept so that tests without the programs can send it again: tests/golden/clients.

A recording keeps the shape of each request whole and its prose short: prompts and descriptions are cut, ids, paths and
dates replaced. FREEHOLD_RECORD_CLIENTS=1 writes recordings anew when the programs run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client_server import ClientServer, Request

FOLDER = Path(__file__).parent / "golden" / "clients"
MAX_PROSE = 100

_WHOLE = frozenset({"definition", "pattern", "arguments", "input", "output", "anthropic-beta"})
"""Fields whose text is not prose."""

_HEADERS = frozenset({"accept", "anthropic-beta", "anthropic-version", "content-type", "user-agent", "x-app"})
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{64}\b")
_DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
_PATH = re.compile(r"/[\w.-]+(?:/[\w.-]+)*/(?=project\b)")


def keep(name: str, server: ClientServer) -> None:
    """Write what came to a server, if recordings are to be made."""
    if os.environ.get("FREEHOLD_RECORD_CLIENTS"):
        kept = [_recorded(request) for request in server.requests if request.method == "POST"]
        _leave_out_repeated_tools(kept)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def recording(name: str) -> list[dict[str, Any]]:
    """The requests of a session: path, headers and body of each."""
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    tools: Any = None
    for request in found:
        tools = request["body"]["tools"] = request["body"].get("tools") or tools
    return found


def _recorded(request: Request) -> dict[str, Any]:
    headers = {name: value for name, value in request.headers.items() if name in _HEADERS}
    headers["user-agent"] = headers["user-agent"].split(" ")[0]  # what follows describes a machine
    return {"path": request.path, "headers": headers, "body": _shortened("", request.body)}


def _shortened(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(name, each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(key, each) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("/home/me/", _DATE.sub("2026-01-01", _ID.sub("0" * 8, value)))
    return text if key in _WHOLE or len(text) <= MAX_PROSE else f"{text[:MAX_PROSE]}..."


def _leave_out_repeated_tools(kept: list[dict[str, Any]]) -> None:
    """A session's requests offer the same tools; they are written once."""
    tools: Any = None
    for request in kept:
        offered = request["body"].get("tools")
        if offered and offered == tools:
            del request["body"]["tools"]
        tools = offered or tools
