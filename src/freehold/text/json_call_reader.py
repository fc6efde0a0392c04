"""Calls whose arguments are JSON, as Hermes, DeepSeek, Kimi and Llama write them: these pass through as they come.

Owns what of a call is the name, what the arguments and what the format's own, and the slips of models that can be put
right: keys in another order, arguments as text, brackets and marks too many or too few. Knows no tokens and no events.
"""

from __future__ import annotations

import json
import re
from typing import Any

from freehold.text.answer_style import CallStyle
from freehold.text.call_arguments import CallArguments
from freehold.text.call_reader import Schemas, State
from freehold.text.json_extent import JsonExtent

MAX_HEAD_CHARS = 1024
"""A name has up to 256 characters."""
_KEYS = {"name", "arguments", "parameters", "id", "type"}


class JsonCallReader:
    """A CallReader. `schemas`: the offered tools by name, with their parameters."""

    def __init__(self, style: CallStyle, schemas: Schemas) -> None:
        self.state: State = "head"
        self.name: str | None = None
        self.n_recoveries = 0
        self._style = style
        self._schemas = schemas
        self._head = re.compile(style.head)
        self._extent = JsonExtent()
        self._n_scanned = 0
        self._arguments = CallArguments(None)

    def read(self, text: str, ended: bool) -> tuple[int, str]:
        if self.state == "head":
            return self._read_head(text, ended)
        if self.state == "arguments":
            return self._read_arguments(text, ended)
        return (self._read_tail(text, ended), "") if self.state == "tail" else (0, "")

    def _read_head(self, text: str, ended: bool) -> tuple[int, str]:
        # Where the answer ends in front of the arguments, the head is as good as complete.
        found = self._head.match(text[:MAX_HEAD_CHARS] + ("{" if ended else ""))
        is_object = "{" in self._style.before
        if found is not None and (not is_object or found.string[found.end()] in "{["):
            if not self._begin(found["name"]):
                return 0, ""
            self.state = "arguments"
            return min(found.end(), len(text)), ""
        if is_object:
            return self._read_whole(text, ended)
        if ended or self._style.close in text or len(text) > MAX_HEAD_CHARS:
            self.state = "failed"
        return 0, ""

    def _read_whole(self, text: str, ended: bool) -> tuple[int, str]:
        """The call as one JSON object, for keys in an unusual order, without arguments, or with arguments as text."""
        self._n_scanned += self._extent.push(text[self._n_scanned :])
        is_whole = self._extent.is_done and not self._extent.is_broken
        if is_whole:
            call = _loaded(text[: self._n_scanned])
        elif self._extent.is_done or ended:
            call = _cut(text) if ended else None
        else:
            return 0, ""
        if call is None or not self._begin(call[0]):
            self.state = "failed"
            return 0, ""
        self.n_recoveries += is_whole
        self.state = "tail"
        return self._n_scanned if is_whole else len(text), call[1]

    def _begin(self, name: str) -> bool:
        """Whether a call of this name can be meant: without marks, only one of a tool that there is."""
        if self._style.is_bare and name not in self._schemas:
            self.state = "failed"
            return False
        self.name = name
        self._arguments = CallArguments(self._schemas.get(name))
        self._extent = JsonExtent()
        return True

    def _read_arguments(self, text: str, ended: bool) -> tuple[int, str]:
        n = self._extent.push(text)
        out = self._arguments.push(text[:n])
        if self._extent.is_done or ended:
            held, as_expected = self._arguments.finish()
            self.n_recoveries += self._extent.is_broken or not (as_expected or ended)
            self.state = "tail"
            out += held
        return n, out

    def _read_tail(self, text: str, ended: bool) -> int:
        close, rest = self._style.close, text.lstrip(self._style.slack)
        if close and rest.startswith(close):
            self.state = "done"
            return len(text) - len(rest) + len(close)
        if ended or (rest and not close.startswith(rest)):
            self.n_recoveries += not ended and bool(close)
            self.state = "done"
            return len(text) - len(rest)
        return 0


def _loaded(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is an object of JSON; arguments that are text are taken for what they say."""
    try:
        call = json.loads(text)
        if not isinstance(call, dict) or not call.keys() <= _KEYS:
            return None
        name: Any = call.get("name")
        arguments: Any = next((call[key] for key in ("arguments", "parameters") if key in call), {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        f"{name}{arguments}".encode()  # half of a surrogate pair, escaped, is JSON and no text
    except (ValueError, RecursionError):
        return None
    return (name, arguments) if isinstance(name, str) and name else None


def _cut(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that the answer's end cut off before its arguments began."""
    found = re.match(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,?\s*(?:"\w*"?\s*:?\s*)?\Z', text)
    return None if found is None else (found[1], "")
