"""How values from a file appear in error messages: on one line, escaped, and short, however long they are."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def quote(value: object) -> str:
    """A repr of at most a few hundred characters, without line breaks."""
    return " ".join(_REPR.repr(value).split())
