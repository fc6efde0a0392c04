"""What reads one call of a style with marks, from right behind its opening mark to behind its closing one.

A call whose head cannot be read is none: nothing of it was given out then, and its text is the answer's. Owns that
interface; json_call_reader and pairs_reader keep to it. Knows no tokens and no events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

State = Literal["head", "arguments", "tail", "done", "failed"]
Schemas = Mapping[str, Mapping[str, Any] | None]


class CallReader(Protocol):
    """Reads one call. `name` is None until it is certain; `n_recoveries` counts what was put right."""

    state: State
    name: str | None
    n_recoveries: int

    def read(self, text: str, ended: bool) -> tuple[int, str]:
        """What `text`, all that came and was not consumed before, makes certain: how many of its characters are now
        consumed, and the arguments among them. `ended`: no more will come. Call it until nothing changes.
        """
        ...
