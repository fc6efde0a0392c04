"""Tools as the harmony format shows them to a model: JSON schemas written as TypeScript-like declarations.

Owns that writing. It follows openai-harmony to the character, oddities included, because that is the text the models
were trained on: an object's description is repeated before its brace, and what the library does not know (anyOf, allOf,
$ref, const, limits) is `any` or left out. Tools whose argument is plain text, which the library lacks, are ours. Knows
no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from freehold.text.tools import Function

_MAX_EXPONENT = 308  # of a double, in tens

_Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Namespace:
    """Functions under one name, or, without any, a tool that takes plain text, like python."""

    name: str
    description: str = ""
    functions: tuple[Function, ...] = ()


def tools_section(namespaces: Sequence[Namespace]) -> str:
    """The "# Tools" part of a system or developer message."""
    return "\n\n".join(["# Tools", *map(_namespace, namespaces)])


def _namespace(namespace: Namespace) -> str:
    lines = [f"## {namespace.name}\n"]
    if not namespace.functions:
        return "\n".join([*lines, *_lines(namespace.description)])
    lines += [f"// {line}" for line in _lines(namespace.description)]
    lines.append(f"namespace {namespace.name} {{\n")
    for function in namespace.functions:
        lines += [f"// {line}" for line in [*_lines(function.description), *_raw_argument(function)]]
        lines.append(f"type {function.name} = ({_argument(function)}) => any;\n")
    return "\n".join([*lines, f"}} // namespace {namespace.name}"])


def _argument(function: Function) -> str:
    if function.is_custom:
        return "_: string"
    return "" if function.parameters is None else f"_: {type_of(function.parameters)}"


def _raw_argument(function: Function) -> list[str]:
    """What a model must be told about a tool whose argument is text: nothing in the type says how it is written."""
    if not function.is_custom:
        return []
    lines = ["The argument is raw text: write it as it is, not as JSON."]
    if function.grammar is not None:
        kind = "regular expression" if function.grammar.kind == "regex" else "Lark grammar"
        lines += [f"It must match this {kind}:", *_lines(str(function.grammar.definition))]
    return lines


def _lines(text: str) -> list[str]:
    """Lines as Rust cuts them: at newlines only, a carriage return before one belonging to it, no empty last line."""
    *lines, last = text.split("\n")
    return [line.removesuffix("\r") for line in lines] + ([last] if last else [])


def type_of(schema: Any, indent: str = "") -> str:
    """The type of a JSON schema made of plain values. `indent` comes before every line but the first."""
    if not isinstance(schema, Mapping):
        return "any"
    kind = schema.get("type")
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(variant, indent)}" for variant in variants)
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{type_of(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        return " | ".join(f'"{value}"' for value in _enum(schema) if isinstance(value, str)) or "string"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _object(schema: _Schema, indent: str) -> str:
    properties, required = schema.get("properties"), schema.get("required")
    fields = properties if isinstance(properties, Mapping) else {}
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    comment = "".join(f"{indent}// {text}\n" for text in _texts(schema, "description"))
    body = "".join(
        _field(name if name in needed else f"{name}?", field if isinstance(field, Mapping) else {}, indent)
        for name, field in fields.items()
    )
    return f"{comment}{{\n{body}{indent}}}"


def _field(name: str, schema: _Schema, indent: str) -> str:
    comments = [line for title in _texts(schema, "title") for line in (f"// {title}", "//")]
    if "oneOf" not in schema:
        comments += [f"// {text}" for text in _texts(schema, "description")]
    if isinstance(examples := schema.get("examples"), list) and examples:
        comments += ["// Examples:", *(f'// - "{example}"' for example in examples if isinstance(example, str))]
    text = "".join(f"{indent}{comment}\n" for comment in comments)
    if isinstance(variants := schema.get("oneOf"), list):
        return text + _union(name, schema, variants, indent)
    default = f" // default: {_default(schema)}" if "default" in schema and "oneOf" not in schema else ""
    return f"{text}{indent}{name}: {_nullable(schema, indent + '    ')},{default}\n"


def _union(name: str, schema: _Schema, variants: list[Any], indent: str) -> str:
    """A field with oneOf: a line for each variant. A description stands above the field or beside the first variant."""
    description = _texts(schema, "description")
    above = [] if variants and description == _texts(variants[0], "description") else description
    lines = [f"// {text}" for text in above]
    if "default" in schema:
        lines.append(f"// default: {_default(schema)}")
    lines.append(f"{name}:")
    for i, variant in enumerate(variants):
        beside = [] if i == 0 and above else [text for text in _texts(variant, "description") if [text] != description]
        if isinstance(variant, Mapping) and "default" in variant:
            beside.append(f"default: {_default(variant)}")
        comment = f" // {' '.join(beside)}" if beside else ""
        lines.append(f" | {_nullable(variant, indent + '   ')}{comment}")
    return "".join(f"{indent}{line}\n" for line in [*lines, ","])


def _variant(schema: Any, indent: str) -> str:
    """A variant of a oneOf that is not a field's own: its description always beside it, an enum's default as JSON."""
    beside = _texts(schema, "description")
    if isinstance(schema, Mapping) and "default" in schema:
        beside.append(f"default: {_json(schema['default']) if _enum(schema) else _default(schema)}")
    comment = f" // {' '.join(beside)}" if beside else ""
    return _nullable(schema, indent + "   ") + comment


def _nullable(schema: Any, indent: str) -> str:
    text = type_of(schema, indent)
    nullable = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{text} | null" if nullable and "null" not in text else text


def _default(schema: _Schema) -> str:
    value = schema["default"]
    if not isinstance(value, str):
        return _json(value)
    return value if _enum(schema) else f'"{value}"'


def _enum(schema: _Schema) -> list[Any]:
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _texts(schema: Any, key: str) -> list[str]:
    """What `schema` says under `key`, if it is text: a list of one or none."""
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return [value] if isinstance(value, str) else []


def _json(value: Any) -> str:
    """Compact JSON with numbers as Rust's serde_json writes them."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, float) or (isinstance(value, int) and not -(2**63) <= value < 2**64):
        return _float(value)
    return json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    """A number as Rust's serde_json writes it after reading it: its quick reading may miss the last bit."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)  # finite
    significand = int("".join(map(str, digits)))
    while significand >= 2**64:
        significand, exponent = significand // 10, exponent + 1
    read = float(significand)
    while exponent < -_MAX_EXPONENT:
        read, exponent = read / 1e308, exponent + _MAX_EXPONENT
    # The power is read from a text because ** need not give the nearest double.
    read = read * float(f"1e{exponent}") if exponent >= 0 else read / float(f"1e{-exponent}")
    text = repr(-read if sign else read)
    mantissa, _, power = text.partition("e")
    if int(power or 0) == -5:  # where Rust still writes out the zeros
        return f"{Decimal(text):f}"
    return f"{mantissa}e{int(power)}" if power else mantissa
