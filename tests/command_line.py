"""What the command line's fixtures (cli/conftest.py) give to a test, as types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]
"""Runs a command line in this process: freehold("run", "Hello")."""

Loads = Callable[..., list[dict[str, Any]]]
"""Makes every command load a scripted model, loads("Paris"); gives the list of the load() calls."""

Pipe = Callable[..., None]
"""Puts bytes on the standard input that `terminal.words` sees."""
