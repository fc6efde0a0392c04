"""JSON Schemas of a request, which are hostile, as llguidance can enforce them.

Owns what of a schema is enforced, what means nothing to a grammar, and what is neither, and so refused or reported with
its path; limits on size and nesting; the whitespace of all JSON that is generated. References are followed within the
schema only. Where the library alone knows that a keyword cannot be had, the keyword is found by trying. Knows no tokens
and no chat format.

An object that names properties and does not say whether it may have others gets no others: models make them up without
end. All that is generated is valid all the same. Schemas that put objects together from parts are left as they are.

Whitespace: one blank may stand after a comma or a colon, none elsewhere, so that no model gets lost in blanks. Inside
strings, blanks are the model's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote

from freehold.errors import RequestError
from freehold.text.grammar import flaw_of

MAX_CHARS = 100_000
"""Of one schema, written as JSON."""

MAX_DEPTH = 64
"""Of one schema, as JSON."""

MAX_LEVELS = 200
"""Of schemas within schemas, references followed."""

MAX_MULTIPLE = 1000
"""Of all multipleOf of a schema, without powers of ten, multiplied: a grammar counts remainders, one state each."""

MAX_PROPERTIES = 200
"""Of one object. Each may come next while those before it may be left out: several ways for a parser to follow."""

OPTIONS = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}}
"""llguidance's, which it reads at the root of a schema."""

FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

_MAPS = ("properties", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties")
_LENGTHS = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
_VALUES = ("type", "enum", "const", "required", "pattern", *_LENGTHS)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ANNOTATIONS = ("title", "description", "default", "examples", "$comment", "readOnly", "writeOnly", "deprecated")
_IDENTITY = ("$schema", "$id", "id", "$anchor", "$vocabulary", "$defs", "definitions")
_OPENAPI = ("example", "nullable", "discriminator", "externalDocs", "xml")
_WITHOUT_EFFECT = frozenset((*_ANNOTATIONS, *_IDENTITY, *_OPENAPI))
"""What forbids nothing by itself, nor did in OpenAPI."""

_MAX_SCHEMAS = 10_000  # within one, what is referred to counted for each way it is referred to
_MAX_SECONDS = 1.0  # spent on finding what the library does not like
_MAX_REPAIRS = 16


@dataclass(frozen=True)
class Enforceable:
    """A schema as JSON text for the library, and the paths of keywords that are not enforced."""

    text: str
    unenforced: tuple[str, ...]


def enforceable(schema: Mapping[str, Any] | bool, strict: bool, where: str) -> Enforceable:
    """What of `schema` can be enforced. Raises RequestError naming path and keyword where it is `strict` and something
    cannot, and for a schema that is malformed, too large, or refers to what is not in it.
    """
    if schema is False:
        raise RequestError(f"{where}: the JSON schema is false, which no text matches; expected another")
    try:
        text = json.dumps(_plain(schema, where), allow_nan=False, ensure_ascii=False)
    except ValueError as error:  # numbers that JSON lacks, or too long to be written
        raise RequestError(f"{where}: the JSON schema cannot be written as JSON ({error})") from error
    if len(text) > MAX_CHARS:
        raise RequestError(f"{where}: the JSON schema is {len(text)} characters long; expected at most {MAX_CHARS}")
    return _enforceable(text, strict, where)


@lru_cache(256)  # the same tools come with every request of a conversation
def _enforceable(text: str, strict: bool, where: str) -> Enforceable:
    reading = _Reading(json.loads(text), strict, where)
    for _ in range(_MAX_REPAIRS):
        flaw = reading.flaw()
        if flaw is None:
            return Enforceable(json.dumps(reading.whole()), tuple(reading.unenforced))
        reading.repair(flaw)
    raise RequestError(f"{where}: the JSON schema cannot be enforced: {flaw}; expected a simpler one")


@dataclass
class _Node:
    """One schema within the schema: where it stands, and what of it is enforced."""

    path: str
    schema: dict[str, Any]


@dataclass
class _Reading:
    """A schema taken apart: `schema` is what of the root is enforced, `targets` what of the places referred to."""

    root: Any
    strict: bool
    where: str
    nodes: list[_Node] = field(default_factory=list)  # inner ones before those around them
    targets: dict[str, Any] = field(default_factory=dict)
    unenforced: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._multiples = 1
        self._deadline = time.monotonic() + _MAX_SECONDS
        self._names: dict[str, str] = {}  # reference -> key of its target
        self._unread: list[tuple[str, str]] = []  # (reference, key)
        self.schema = self._read(self.root, self.where)
        while self._unread:
            reference, key = self._unread.pop()
            self.targets[key] = self._read(self._target(reference), self.where + reference[1:].replace("/", "."))
        _check_levels(self.schema, self.targets, self.where)
        if not any(_combines(node.schema) for node in self.nodes):
            for node in self.nodes:
                if _may_be_closed(node.schema):
                    node.schema["additionalProperties"] = False

    def whole(self, schema: Any = None, stubs: bool = False) -> dict[str, Any]:
        """A schema, the root by default, with options and the targets of its references; `stubs`: with any in their
        place."""
        chosen = self.schema if schema is None else schema
        body = {} if chosen is True else chosen
        targets = dict.fromkeys(self.targets, True) if stubs else self.targets
        return {**OPTIONS, **body, **({"$defs": targets} if targets else {})}

    def flaw(self, schema: Any = None, stubs: bool = False) -> str | None:
        """What the library has against it."""
        return flaw_of(f"start: %json {json.dumps(self.whole(schema, stubs))}")

    def repair(self, flaw: str) -> None:
        """Leave out the keyword that causes the flaw. Raises RequestError if the schema is strict, or none does."""
        found = self._culprit()
        if found is None:
            raise RequestError(f"{self.where}: the JSON schema cannot be enforced: {flaw}; expected a simpler one")
        node, keyword, reason = found
        if keyword == "oneOf":
            reason = "its schemas are not visibly exclusive, so only one or more of them can be had: say anyOf"
        self._leave_out(node.path, keyword, reason)
        value = node.schema.pop(keyword)
        if keyword == "oneOf" and "anyOf" not in node.schema:
            node.schema["anyOf"] = value  # at least one of them, though it may be several

    def _culprit(self) -> tuple[_Node, str, str] | None:
        """The innermost schema that the library refuses by itself, the keyword without which it does not, and why."""
        for stubs in (True, False):
            for node in self.nodes:
                if time.monotonic() > self._deadline:
                    return None
                reason = self.flaw(node.schema, stubs)
                # The shape of a value is worth more than its limits.
                for keyword in sorted(node.schema, key=_gives_shape) if reason else ():
                    if not self.flaw({k: v for k, v in node.schema.items() if k != keyword}, stubs):
                        return node, keyword, str(reason)
        return None

    def _read(self, schema: Any, path: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            _fail(f"{path} is a {type(schema).__name__}", "a JSON schema: an object, true or false")
        read: dict[str, Any] = {}
        for keyword, value in schema.items():
            here = f"{path}.{keyword}"
            if keyword in _MAPS and isinstance(value, dict) and len(value) > MAX_PROPERTIES:
                self._leave_out(path, keyword, f"it has {len(value)} entries; expected at most {MAX_PROPERTIES}")
            elif keyword in _MAPS:
                read[keyword] = {name: self._read(inner, f"{here}.{name}") for name, inner in _members(value, here)}
            elif keyword in _LISTS:
                read[keyword] = [self._read(inner, f"{here}[{i}]") for i, inner in enumerate(_list(value, here))]
            elif keyword == "items" and isinstance(value, list):  # as in drafts before 2020-12
                read["prefixItems"] = [self._read(inner, f"{here}[{i}]") for i, inner in enumerate(value)]
                if "additionalItems" in schema:
                    read["items"] = self._read(schema["additionalItems"], f"{path}.additionalItems")
            elif keyword in _SCHEMAS:
                read[keyword] = self._read(value, here)
            elif keyword == "$ref":
                read[keyword] = self._reference(value, here)
            elif keyword != "additionalItems":
                self._read_value(read, path, keyword, value, schema)
        self.nodes.append(_Node(path, read))
        if len(self.nodes) > _MAX_SCHEMAS:
            _fail(f"{self.where}: the JSON schema holds more than {_MAX_SCHEMAS} schemas", "fewer")
        return read

    def _read_value(self, read: dict[str, Any], path: str, keyword: str, value: Any, schema: dict[str, Any]) -> None:
        if keyword in _VALUES:
            read[keyword] = value
        elif keyword in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                self._leave_out(path, keyword, f"it is {json.dumps(value):.80}; expected a number")
            elif keyword == "multipleOf" and not self._affords(value):
                self._leave_out(path, keyword, f"all of them together may come to {MAX_MULTIPLE}, powers of ten aside")
            else:
                read[keyword] = value
        elif keyword == "format":
            if value in FORMATS:
                read[keyword] = value
            elif schema.get("type") not in ("integer", "number"):  # whose formats, like int32, are annotations
                self._leave_out(path, keyword, f"{value!r:.80} is not one of {', '.join(FORMATS)}")
        elif keyword not in _WITHOUT_EFFECT and not keyword.startswith("x-"):
            self._leave_out(path, keyword, "no grammar says what it says")

    def _affords(self, multiple: float) -> bool:
        """Count one more multipleOf, if there is room for it."""
        digits = "".join(map(str, Decimal(str(multiple)).as_tuple().digits)).rstrip("0") or "1"
        if len(digits) > 4 or self._multiples * int(digits) > MAX_MULTIPLE:
            return False
        self._multiples *= int(digits)
        return True

    def _reference(self, reference: Any, path: str) -> str:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            _fail(f"{path} is {reference!r:.80}", "a place in the same schema, like '#/$defs/name'")
        if reference not in self._names:
            self._target(reference)
            self._names[reference] = str(len(self._names))
            self._unread.append((reference, self._names[reference]))
        return f"#/$defs/{self._names[reference]}"

    def _target(self, reference: str) -> Any:
        found = self.root
        for step in reference.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                _fail(f"{self.where} has the $ref {reference!r:.80}, which leads nowhere", "a place in the same schema")
        return found

    def _leave_out(self, path: str, keyword: str, reason: str) -> None:
        if self.strict:
            raise RequestError(
                f"{path}: the JSON Schema keyword {keyword!r:.80} cannot be enforced ({reason}); leave it out, or send "
                f"the schema without strict"
            )
        self.unenforced.append(f"{path}.{keyword}")


def _check_levels(schema: Any, targets: Mapping[str, Any], where: str) -> None:
    """Refuse what the library would have to recurse into too deeply, and references that lead back to themselves."""
    seen: set[str] = set()

    def descend(schema: Any, level: int, within: tuple[str, ...]) -> None:
        """`within`: the targets that this schema is, rather than has as a part."""
        if not isinstance(schema, dict):
            return
        if level > MAX_LEVELS:
            _fail(f"{where}: the JSON schema leads through more than {MAX_LEVELS} schemas", "a flatter one")
        key = schema.get("$ref", "").removeprefix("#/$defs/")
        if key in within:
            _fail(f"{where}: a $ref of the JSON schema leads back to itself", "references that lead to a schema")
        if key and key not in seen:
            seen.add(key)
            descend(targets[key], level + 1, (*within, key))
        for keyword, inner in _inner(schema):
            descend(inner, level + 1, within if keyword in ("anyOf", "oneOf", "allOf") else ())

    descend(schema, 0, ())


def _combines(schema: dict[str, Any]) -> bool:
    """Whether an object may have to be what several schemas say, each of which knows a part of its properties."""
    return "allOf" in schema or ("properties" in schema and bool(schema.keys() & {"anyOf", "oneOf", "$ref"}))


def _may_be_closed(schema: dict[str, Any]) -> bool:
    """Whether an object can do with the properties that it names."""
    says_itself = schema.keys() & {"additionalProperties", "patternProperties", "minProperties"}
    required = schema.get("required", [])
    named = isinstance(required, list) and all(name in schema.get("properties", {}) for name in required)
    return bool(schema.get("properties")) and not says_itself and named


def _gives_shape(keyword: str) -> bool:
    return keyword in ("type", "$ref", *_MAPS, *_LISTS, *_SCHEMAS)


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _MAPS:
            yield from ((keyword, inner) for inner in value.values())
        elif keyword in _LISTS:
            yield from ((keyword, inner) for inner in value)
        elif keyword in _SCHEMAS:
            yield keyword, value


def _members(value: Any, path: str) -> Sequence[tuple[str, Any]]:
    if not isinstance(value, dict):
        _fail(f"{path} is a {type(value).__name__}", "an object of JSON schemas")
    return list(value.items())


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        _fail(f"{path} is a {type(value).__name__}", "a list of JSON schemas")
    return value


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of what JSON has."""
    if depth > MAX_DEPTH:
        _fail(f"{where}: the JSON schema is nested more than {MAX_DEPTH} deep", "a flatter one")
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            _fail(f"{where}: the JSON schema has the key {wrong[0]!r:.80}", "text as keys")
        return {key: _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, depth + 1) for item in value]
    if not isinstance(value, (str, int, float, type(None))):
        _fail(f"{where}: the JSON schema holds a {type(value).__name__}", "plain JSON values")
    return value


def _fail(found: str, expected: str) -> NoReturn:
    raise RequestError(f"{found}; expected {expected}")
