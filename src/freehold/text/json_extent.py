"""Where a JSON value ends in text that arrives in pieces.

Owns that search and nothing else: the value is not checked beyond its brackets and strings. Knows no calls.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[^\s\w.,:+\-]")
_IN_STRING = re.compile(r'["\\]')


class JsonExtent:
    """Follows one object or array from its first character on; blanks may come first.

    is_broken: what came can be no JSON value, so it ends in front of that.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> int:
        """How many characters of `text` belong to the value."""
        at = 0
        while at < len(text) and not self.is_done:
            at = self._string(text, at) if self._in_string else self._structure(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        self._escaped = found[0] == "\\"
        self._in_string = self._escaped
        return found.end()

    def _structure(self, text: str, at: int) -> int:
        found = _SPECIAL.search(text, at)
        if self._depth == 0 and text[at : found.start() if found else len(text)].strip():
            return self._break(at)
        if found is None:
            return len(text)
        if found[0] in "{[":
            self._depth += 1
        elif found[0] in "}]" and self._depth:
            self._depth -= 1
            self.is_done = self._depth == 0
        elif found[0] == '"' and self._depth:
            self._in_string = True
        else:
            return self._break(found.start())
        return found.end()

    def _break(self, at: int) -> int:
        self.is_done = self.is_broken = True
        return at
