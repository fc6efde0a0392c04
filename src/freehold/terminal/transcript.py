"""Saved chats: one JSON file per conversation, written atomically and checked when read back.

Owns the file format. A file to load may come from anybody: it is bounded, parsed and checked before a word is used.

    {"freehold_chat": 1, "model": "smollm2", "system": "..." | null, "messages": [{"role": "user", "content": "..."}]}

An assistant's message has "reasoning" too where there was any.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError, NotFoundError, RequestError
from freehold.text.chat import Message

VERSION = 1
MAX_BYTES = 64 * 10**6
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Transcript:
    """A conversation at rest: the system message apart, then user and assistant turns, oldest first."""

    model: str
    system: str | None
    messages: tuple[Message, ...]


def save(path: Path, transcript: Transcript) -> None:
    """Write atomically, readable by the owner alone. Refuses to replace a file that is not a saved chat."""
    if path.exists():
        try:
            load(path)
        except FreeholdError:
            raise RequestError(f"{path} exists and is not a saved chat; choose another name") from None
    messages = [_saved(message) for message in transcript.messages]
    data = {"freehold_chat": VERSION, "model": transcript.model, "system": transcript.system, "messages": messages}
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RequestError(f"cannot save to {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def load(path: Path) -> Transcript:
    """Read a saved chat. NotFoundError, or RequestError naming what is wrong in the file."""
    try:
        if not path.is_file():
            raise NotFoundError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RequestError(f"{path} is over {MAX_BYTES // 10**6} MB; that is no saved chat")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not a saved chat: it is not valid JSON") from error
    return _checked(path, parsed)


def _checked(path: Path, data: Any) -> Transcript:
    def require(ok: bool, expected: str) -> None:
        if not ok:
            raise RequestError(f"{path} is not a saved chat: expected {expected}")

    require(isinstance(data, dict) and "freehold_chat" in data, 'an object with the key "freehold_chat"')
    version, model, system = data["freehold_chat"], data.get("model"), data.get("system")
    require(version == VERSION, f'"freehold_chat" to be {VERSION}, found {str(version)[:40]!r}')
    require(isinstance(model, str), '"model" to be a string')
    require(system is None or isinstance(system, str), '"system" to be a string or null')
    require(isinstance(data.get("messages"), list), '"messages" to be a list')
    return Transcript(model, system, _checked_messages(path, data["messages"]))


def _saved(message: Message) -> dict[str, str]:
    reasoning = {} if message.reasoning is None else {"reasoning": message.reasoning}
    return {"role": message.role, "content": message.content, **reasoning}


def _checked_messages(path: Path, items: Sequence[Any]) -> tuple[Message, ...]:
    messages = []
    for number, item in enumerate(items):
        ok = isinstance(item, dict) and item.get("role") in ROLES and isinstance(item.get("content"), str)
        reasoning = item.get("reasoning") if ok else None
        if not ok or not (reasoning is None or (isinstance(reasoning, str) and item["role"] == "assistant")):
            raise RequestError(
                f'{path} is not a saved chat: message {number} needs a "role" of user or assistant and a string '
                '"content"; an assistant\'s may have a string "reasoning"'
            )
        messages.append(Message(role=item["role"], content=item["content"], reasoning=reasoning))
    return tuple(messages)
