"""The arguments of one tool call as they arrive: verbatim, with one slip of models put right.

Owns the unwrapping of an object that a model put into a one-element array although the tool's schema wants the object
itself. Only text that may turn out to be such an array is held back. Knows no tokens and no chat format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class CallArguments:
    """Passes a call's arguments through. `schema` is the JSON schema of the tool's parameters, None where unknown."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self._checked = schema is not None
        self._holding = schema is not None and (schema.get("type") == "object" or "properties" in schema)
        self._pieces: list[str] = []

    def push(self, text: str) -> str:
        """The text that is now certain."""
        self._pieces.append(text)
        if not self._holding:
            return text
        if not text.strip() or self._is_array():
            return ""
        self._holding = False
        return "".join(self._pieces)

    def finish(self) -> tuple[str, bool]:
        """The arguments end here: what was held back, and whether the whole is what was to be expected of a model."""
        text = "".join(self._pieces)
        held = text if self._holding else ""
        if not self._checked:
            return held, True
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return held, False
        if self._holding and isinstance(parsed, list) and len(parsed) == 1 and isinstance(parsed[0], dict):
            return text.strip()[1:-1].strip(), False
        return held, True

    def _is_array(self) -> bool:
        """Whether the first character that is not blank opens an array. The pieces before the last one are blank, or
        begin an array themselves."""
        return next((piece for piece in self._pieces if piece.strip()), "").lstrip().startswith("[")
