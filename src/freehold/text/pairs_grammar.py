"""The grammar of arguments that are key and value pairs between tags: the keys of a tool's schema, in that order.

Owns how a JSON schema binds such pairs: text stands between its tags as it is, all else as JSON. What a request says
never becomes a control token, only the format's own tags do. Knows no requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from freehold.text.answer_style import CallStyle
from freehold.text.grammar_source import rule_body
from freehold.text.request import Grammar
from freehold.text.tools import Function


class Writer(Protocol):
    """Where rules are written."""

    def add(self, rule: str) -> None:
        """One more rule."""
        ...

    def up_to(self, mark: str) -> str:
        """What makes a rule's head the rule of any text up to `mark` and of that."""
        ...

    def literal(self, text: str) -> str:
        """The format's own text, control tokens by id."""
        ...


def pair_rules(writer: Writer, style: CallStyle, rule: str, function: Function | None) -> str:
    """The right side of `rule`, for the arguments of `function`; None: for any pairs."""
    schema = {} if function is None else function.parameters or {"properties": {}}
    properties = schema.get("properties")
    if function is None or not isinstance(properties, Mapping):
        writer.add(f"{rule}_key{writer.up_to(style.keyed[1].rstrip())}")
        key = f"{writer.literal(style.keyed[0])} {rule}_key {writer.literal(_blanks(style.keyed[1]))}"
        return f"({key} {_value(writer, style, None, f'{rule}_value')})*"
    needed = schema.get("required")
    needed = needed if isinstance(needed, (list, tuple)) else ()
    pairs = []
    for i, (key, part) in enumerate(properties.items()):
        pair = f"{rule}_{i}"
        head = f"{writer.literal(style.keyed[0])} {quoted(key)} {writer.literal(style.keyed[1])}"
        bound = Grammar("json_schema", _within(part, schema), function.strict, f"{function.where}.parameters.{key}")
        writer.add(f"{pair}: {head} {_value(writer, style, bound, f'{pair}_value')}")
        pairs.append(pair if key in needed else f"{pair}?")
    return " ".join(pairs)


def quoted(text: str) -> str:
    """Text as a Lark string: as in JSON, but without DEL. Empty for an empty one."""
    return json.dumps(text).replace("\x7f", "\\u007f") if text else ""


def _value(writer: Writer, style: CallStyle, bound: Grammar | None, rule: str) -> str:
    """A value between its tags. `bound` None: any text."""
    opening, closing = map(writer.literal, style.valued)
    schema = bound.definition if bound is not None else {"type": "string"}
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        options = _options(schema)
        if options is None:
            writer.add(f"{rule}{writer.up_to(style.valued[1].rstrip())}")
            return f"{opening} {rule} {writer.literal(_blanks(style.valued[1]))}"
        body = " | ".join(map(quoted, options))
    else:
        assert bound is not None
        body = rule_body(bound)
    writer.add(f"{rule}: {body}")
    return f"{opening} {rule} {closing}"


def _options(schema: Mapping[str, Any]) -> Sequence[str] | None:
    """The texts that a schema of text allows; None where it names none."""
    options = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if not isinstance(options, (list, tuple)):
        return None
    return [option for option in options if isinstance(option, str)] or None


def _blanks(tag: str) -> str:
    """What stands behind a closing tag."""
    return tag[len(tag.rstrip()) :]


def _within(part: Any, schema: Mapping[str, Any]) -> Any:
    """A property's schema with the definitions that it may refer to."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {**shared, **part} if isinstance(part, Mapping) else part
