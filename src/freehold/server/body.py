"""Request bodies: bytes to checked values.

Owns the limits of size and nesting, the strict reading of JSON, the words in which a wrong field is described, and what
all protocols say of fields that they cannot do. A protocol declares its fields as a Body, and objects within it as
Parts; a field of a Body that is not declared is kept aside, and the client is told that it was ignored.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.types import Receive

from freehold.server.errors import ApiError

MAX_DEPTH = 64
"""Levels of JSON in a request; tool schemas reach a dozen."""

_SHOWN = 80  # characters of a wrong value in a message
_NO_TEXT = ("image", "audio", "video", "file", "screenshot", "base64", "url", "upload")  # in types of content

ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class Body(BaseModel):
    """Base of the request bodies. Types are strict: "1" is no number."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True, protected_namespaces=())

    @property
    def ignored(self) -> list[str]:
        """Fields that were sent and mean nothing here, null ones left out."""
        return sorted(name for name, value in (self.model_extra or {}).items() if value is not None)


class Part(BaseModel):
    """Base of the objects within a body. Keys that no model reads (cache_control, annotations) are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


BodyType = TypeVar("BodyType", bound=Body)


class ClientGone(Exception):
    """The client closed its connection before its request was complete: nobody is left to be answered."""


async def read_bytes(receive: Receive, max_bytes: int) -> bytes:
    """The whole request body. Raises ApiError 413 as soon as it is too long, ClientGone."""
    chunks, n_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        chunks.append(message.get("body", b""))
        n_bytes += len(chunks[-1])
        if n_bytes > max_bytes:
            raise too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


def too_large(max_bytes: int) -> ApiError:
    """The answer to a body of more than `max_bytes`."""
    return ApiError(413, f"the request is larger than {max_bytes} bytes; send less, or raise --max-body")


def parse(raw: bytes, kind: type[BodyType]) -> BodyType:
    """Check a JSON body against its declaration. Raises ApiError 400 naming the field, and what it may be."""
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise ApiError(400, f"the request body is {_described(value)}; expected a JSON object")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _wrong_field(error, value) from None


def parse_json(raw: bytes) -> Any:
    """JSON without NaN, Infinity, duplicate keys or more than MAX_DEPTH levels. Raises ApiError 400."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the request body is not UTF-8 (byte {error.start}); expected JSON in UTF-8") from None
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the request body is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # a number with thousands of digits
        raise ApiError(400, "the request body holds a whole number that is too long; expected a smaller one") from None
    if is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    if "\\u" in text and _holds_surrogate(value):
        raise ApiError(
            400, "the request body has a text with half of a surrogate pair (\\ud800 to \\udfff); expected text"
        )
    return value


def refuse(body: Body, advice: Mapping[str, str]) -> None:
    """Raises ApiError 400 for the first field of `advice` that asks for something, declared or not."""
    for name, words in advice.items():
        if getattr(body, name, None):
            raise ApiError(400, f"{name} is not supported: {words}", param=name)


def text_only(value: Any) -> Any:
    """A validator before others: says of an image and its like what it is, not which types there are."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and any(word in kind for word in _NO_TEXT):
        raise PydanticCustomError(
            "text_only",
            "its type is {kind}; text is all this runtime reads, no images, audio or files",
            {"kind": kind[:_SHOWN]},
        )
    return value


def text_or(otherwise: str) -> Callable[[Any], str]:
    """A discriminator that tells text from a list, so that what is wrong with one is not said of the other."""
    return lambda value: "text" if isinstance(value, str) else otherwise


def is_deeper(value: Any, n_levels: int) -> bool:
    """Whether containers are nested in `value`, itself included, more than `n_levels` deep. Does not recurse."""
    level = [value]
    for _ in range(n_levels + 1):
        containers = [outer for outer in level if isinstance(outer, (dict, list))]
        if not containers:
            return False
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ApiError(400, f"the request body has the key {twice[:_SHOWN]!r} twice in one object; expected it once")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, f"the request body holds {text[:_SHOWN]}, which is no number here; expected a smaller one")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ApiError(400, f"the request body holds {name}, which is not JSON; expected a number")


def _holds_surrogate(value: Any) -> bool:
    """Whether some text could not be written as UTF-8. Whole pairs were joined when they were read."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_deep() -> ApiError:
    return ApiError(400, f"the request body is nested more than {MAX_DEPTH} levels deep; expected fewer")


def _wrong_field(error: ValidationError, body: Any) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    first = details[0]
    *above, last = first["loc"] or ("",)
    missing = first["type"] == "missing"
    where, value = "", body
    for part in [*above, *([] if missing else [last])]:
        # What is no key of an object is the name of a union's member, not of a field.
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            where += f"[{part}]"
            value = value[part]
        elif isinstance(value, dict) and part in value:
            where += f".{part}" if where else str(part)
            value = value[part]
    if missing:
        where = f"{where}.{last}" if where else str(last)
        return ApiError(400, f"{where} is missing", param=where)
    expected = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{where or 'the request body'} is {_described(value)}; {expected}", param=where or None)


def _described(value: Any) -> str:
    if isinstance(value, (str, int, float, bool)) or value is None:
        shown = json.dumps(value, ensure_ascii=False)
        return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return "a list" if isinstance(value, list) else "an object"
