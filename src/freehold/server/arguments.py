"""A call's arguments where a protocol wants an object: from the text that a model wrote, and back.

Owns what becomes of text that is no JSON object, cut off or never meant to be one: it is handed on verbatim under a key
that the protocol names, so that no answer is lost and no tool takes half of its arguments for all. Knows no protocol.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from freehold.server.body import MAX_DEPTH, is_deeper
from freehold.server.sse import dumps

_AROUND = 14
"""Levels of a body around a call's arguments, and to spare: what is sent out must be readable when it comes back."""


def as_object(arguments: str, verbatim_key: str) -> dict[str, Any]:
    """Arguments as a JSON object; none at all are an empty one, and what is none is {verbatim_key: arguments}."""
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        value = None
    is_object = isinstance(value, dict) and not is_deeper(value, MAX_DEPTH - _AROUND)
    return value if is_object else {verbatim_key: arguments}


def as_text(value: dict[str, Any], verbatim_key: str) -> str:
    """The reverse of `as_object`: compact JSON, as a model writes it that is held to a schema."""
    verbatim = value.get(verbatim_key)
    return verbatim if isinstance(verbatim, str) and len(value) == 1 else dumps(value).decode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # 1e999, which could not be written again
        raise ValueError(f"{digits} is too large")
    return number
