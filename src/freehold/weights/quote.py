"""Messages about files: values quoted, however large or strange they are, and the file named."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterator
from pathlib import Path

from freehold.errors import ModelFileError, UnsupportedError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def quote(value: object) -> str:
    """A repr of at most a few hundred characters, without line breaks."""
    return " ".join(_REPR.repr(value).split())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the errors of a translation, which does not know it."""
    try:
        yield
    except (ModelFileError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error
