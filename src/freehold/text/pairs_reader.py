"""Calls whose arguments are key and value pairs between tags, as GLM and Qwen3-Coder write them, made JSON.

Owns what a value is: text where the tool's schema says so or where it is no JSON, JSON otherwise. Models leave out a
tag now and then, so each one's absence is made up for where the next one tells. Knows no tokens and no events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from freehold.text.answer_style import CallStyle
from freehold.text.call_reader import Schemas, State

MAX_HEAD_CHARS = 1024


class PairsReader:
    """A CallReader. `schemas`: the offered tools by name, with their parameters."""

    def __init__(self, style: CallStyle, schemas: Schemas) -> None:
        self.state: State = "head"
        self.name: str | None = None
        self.n_recoveries = 0
        self._schemas = schemas
        self._types: Mapping[str, Any] = {}
        self._head = re.compile(style.head)
        self._close = style.close
        self._key, self._pair = _patterns(style)
        # What may come between pairs: the next one, or the closing tags.
        self._tags = (style.keyed[0], *style.behind.split())
        self._n_pairs = 0
        self._n_searched = 0

    def read(self, text: str, ended: bool) -> tuple[int, str]:
        if self.state == "head":
            return self._read_head(text, ended)
        return self._read_pair(text, ended) if self.state == "arguments" else (0, "")

    def _read_head(self, text: str, ended: bool) -> tuple[int, str]:
        found = self._head.match(text[:MAX_HEAD_CHARS] + (self._close if ended else ""))
        if found is not None:
            self.name, self.state = found["name"], "arguments"
            schema = self._schemas.get(self.name)
            types = schema.get("properties") if schema is not None else None
            self._types = types if isinstance(types, Mapping) else {}
            return min(found.end(), len(text)), "{"
        if ended or self._close in text or len(text) > MAX_HEAD_CHARS:
            self.state = "failed"
        return 0, ""

    def _read_pair(self, text: str, ended: bool) -> tuple[int, str]:
        # A long value is not searched again for every token: whatever ends one ends with a bracket.
        may_match = ended or ">" in text[self._n_searched :]
        self._n_searched = len(text)
        pair = self._pair.match(text) if may_match else None
        if pair is not None:
            self._n_searched = 0
            self.n_recoveries += pair["closed"] is None
            return pair.end(), self._written(pair["key"].strip(), pair["value"], whole=True)
        rest = text.lstrip()
        if rest.startswith(self._tags[0]):
            return self._cut(text) if ended else (0, "")
        return self._read_end(text, rest, ended)

    def _read_end(self, text: str, rest: str, ended: bool) -> tuple[int, str]:
        """The closing tags, or what stands in their place."""
        if any(tag.startswith(rest) and tag != rest for tag in self._tags):
            self.state = "done" if ended else self.state
            return (len(text) if ended else 0), ""
        n_closed = 0
        for tag in self._tags[1:]:
            if rest.startswith(tag):
                rest, n_closed = rest.removeprefix(tag), n_closed + 1
            elif not ended and tag.startswith(rest.lstrip()):
                return 0, ""
            elif rest.lstrip().startswith(tag):
                rest, n_closed = rest.lstrip().removeprefix(tag), n_closed + 1
        self.n_recoveries += n_closed < len(self._tags) - 1
        self.state = "done"
        return len(text) - len(rest), "}"

    def _cut(self, text: str) -> tuple[int, str]:
        """A pair that the answer's end cut off, as it is: what it would have become is not ours to say."""
        self.state = "done"
        found = re.match(self._key + "(?P<value>.*)", text, re.DOTALL)
        if found is not None:
            return len(text), self._written(found["key"].strip(), found["value"], whole=False)
        key = text.lstrip().removeprefix(self._tags[0]).strip()
        return len(text), f"{', ' if self._n_pairs else ''}{json.dumps(key, ensure_ascii=False)[:-1]}" if key else ""

    def _written(self, key: str, value: str, whole: bool) -> str:
        joint = ", " if self._n_pairs else ""
        self._n_pairs += 1
        written = _as_json(value, self._types.get(key)) if whole else json.dumps(value, ensure_ascii=False)[:-1]
        return f"{joint}{json.dumps(key, ensure_ascii=False)}: {written}"


def _as_json(value: str, schema: Any) -> str:
    """A value as JSON text. Without a schema that says otherwise, what is JSON is meant as that, and stays as it is."""
    is_text = isinstance(schema, Mapping) and schema.get("type") == "string"
    return json.dumps(value, ensure_ascii=False) if is_text or not _is_json(value) else value.strip()


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=int)  # which refuses NaN and the infinities: JSON has none
    except (ValueError, RecursionError):
        return False
    return True


@cache
def _patterns(style: CallStyle) -> tuple[str, re.Pattern[str]]:
    """From the style's tags: a key up to its value, and a whole pair."""
    key_open, key_close = (re.escape(tag.strip()) for tag in style.keyed)
    value_open, value_close = (re.escape(tag.strip()) for tag in style.valued)
    if value_open:
        key = rf"\s*{key_open}(?P<key>[^<>]*?)(?:{key_close}\s*{value_open}|{key_close}|\s*{value_open})"
        edge = ""
    else:  # the value stands on lines of its own
        key, edge = rf"\s*{key_open}(?P<key>[^<>\n]*?){key_close}\n?", r"\n?"
    follows = rf"(?=\s*{key_open})|(?=\s*{re.escape(style.behind.split()[0])})"
    pair = rf"{key}(?P<value>.*?)(?:{edge}(?P<closed>{value_close})|{follows})"
    return key, re.compile(pair, re.DOTALL)
