"""Small JSON files of a checkpoint, read strictly.

Owns the limits (size, unique keys, no NaN, an object at the top) and the errors. Knows nothing of what keys mean.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from freehold.errors import ModelFileError, NotFoundError
from freehold.weights.quote import quote


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top is an object. `what` names the source in errors (ModelFileError)."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ModelFileError(f"{what} is nested too deeply to be what it claims to be") from None
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits, or one of the hooks below
        raise ModelFileError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{what} holds a JSON {type(value).__name__}; expected an object")
    return value


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The bytes of a small file; NotFoundError if there is none, ModelFileError if it is too large or unreadable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: opening a pipe would wait for its writer
            raise ModelFileError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ModelFileError(f"{path} is larger than {max_bytes:,} bytes; a genuine one is far smaller")
    return data


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read and parse one file; errors as in `parse_object` and `read_limited`."""
    return parse_object(read_limited(path, max_bytes), str(path))


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quote(key)} occurs twice")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
