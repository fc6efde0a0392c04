"""Tool schemas as declarations: the forms that matter one by one, and schemas that are out to do harm."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.errors import RequestError
from freehold.text.harmony_builtins import BUILTIN_RECIPIENTS
from freehold.text.harmony_tools import Namespace, tools_section, type_of
from freehold.text.tools import MAX_CHARS, MAX_DEPTH, read_functions


def tool(parameters: Any = None, name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def declared(*tools: dict[str, Any]) -> str:
    return tools_section([Namespace("functions", functions=read_functions(tools))])


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "string"),
        ({"type": "integer"}, "number"),
        ({"type": ["integer", "null"], "enum": [1]}, "number | null"),
        ({"type": "string", "enum": ["a", 1, "b"]}, '"a" | "b"'),
        ({"type": "string", "enum": [1]}, "string"),
        ({"enum": ["a"]}, "any"),
        ({"type": "array"}, "Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": True}}, "any[][]"),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, '"a" | "b"[]'),
        ({"type": "object"}, "{\n}"),
        ({"anyOf": [{"type": "string"}]}, "any"),
        ({"$ref": "#/$defs/x"}, "any"),
        (
            {"oneOf": [{"type": "string"}, {"type": "object", "description": "o"}]},
            "\n | string\n |    // o\n{\n   } // o",
        ),
        (
            {"oneOf": [{"type": "string", "enum": ["a"], "default": "a"}, {"type": "number", "nullable": True}]},
            '\n | "a" // default: "a"\n | number | null',
        ),
    ],
)
def test_types(schema: dict[str, Any], expected: str) -> None:
    assert type_of(schema) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"type": "string", "default": "x"}, 'a?: string, // default: "x"'),
        ({"type": "string", "enum": ["x"], "default": "x"}, 'a?: "x", // default: x'),
        ({"type": "number", "default": 1e-5, "nullable": True}, "a?: number | null, // default: 0.00001"),
        ({"default": {"é": [1.0, None]}}, 'a?: any, // default: {"é":[1.0,null]}'),
        ({"title": "T", "description": "D", "examples": ["e", 1]}, '// T\n//\n// D\n// Examples:\n// - "e"\na?: any,'),
        (
            {"type": "object", "description": "D", "properties": {"b": {"type": "string"}}, "required": ["b"]},
            "// D\na?:     // D\n{\n    b: string,\n    },",
        ),
        (
            {
                "description": "D",
                "oneOf": [{"type": "string", "description": "s"}, {"type": "null", "description": "n"}],
            },
            "// D\na?:\n | string\n | any // n\n,",
        ),
        (
            {"description": "D", "default": 1, "oneOf": [{"type": "string", "description": "D", "default": "x"}]},
            '// default: 1\na?:\n | string // default: "x"\n,',
        ),
    ],
)
def test_fields(field: dict[str, Any], expected: str) -> None:
    assert type_of({"type": "object", "properties": {"a": field}}) == f"{{\n{expected}\n}}"


def test_namespace() -> None:
    text = declared(tool(None, "now", description="One.\r\nTwo.\n"), tool({}, "odd"))
    assert text == (
        "# Tools\n\n## functions\n\nnamespace functions {\n\n// One.\n// Two.\ntype now = () => any;\n\n"
        "type odd = (_: any) => any;\n\n} // namespace functions"
    )


def test_builtin_recipients() -> None:
    assert {"python", "browser.search", "browser.open", "browser.find"} == BUILTIN_RECIPIENTS


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], r"tools\[0\] is a list"),
        ({"type": "web_search"}, r"tools\[0\] is of type 'web_search'"),
        ({"type": "function"}, r"tools\[0\]\.function is a NoneType"),
        (tool(name=""), r"name is ''"),
        (tool(name="a b"), r"name is 'a b'"),
        (tool(name="<|end|>"), r"without blanks"),
        (tool(name=3), r"name is 3"),
        (tool(description=["x"]), r"description is a list"),
        (tool([]), r"parameters is a list"),
        (tool({"default": float("nan")}), r"finite numbers"),
        (tool({"default": 10**400}), r"finite numbers"),
        (tool({"default": b"x"}), r"holds a bytes"),
        (tool({"properties": {1: {}}}), r"has the key 1"),
        (tool({"description": "x" * MAX_CHARS}), r"too large"),
        (tool({"required": ["x"] * MAX_CHARS}), r"too large"),
    ],
)
def test_bad_tools_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_functions([bad])


def nested(n_levels: int, key: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n_levels):
        inner = {"properties": {"a": schema}} if key == "properties" else {key: [schema] if key == "oneOf" else schema}
        schema = {"type": "array" if key == "items" else "object", **inner}
    return schema


@pytest.mark.parametrize("key", ["properties", "items", "oneOf", "default", "anyOf"])
def test_depth_is_bounded(key: str) -> None:
    assert declared(tool(nested(MAX_DEPTH // 2 - 1, key)))
    for n_levels in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(RequestError, match="deep"):
            read_functions([tool(nested(n_levels, key))])


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    with pytest.raises(RequestError, match="deep"):
        read_functions([tool(schema)])


def test_a_schema_that_grows_when_written_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}}
    with pytest.raises(RequestError, match="too large"):
        read_functions([tool(schema)])


def test_the_bound_holds_for_what_is_written() -> None:
    """The deepest, widest schema that is let through: indentation is most of its text."""
    leaves: dict[str, Any] = {"type": "object", "properties": {f"{i}": {} for i in range(2000)}}
    for _ in range(45):
        leaves = {"type": "object", "properties": {"a": leaves}}
    assert len(declared(tool(leaves))) <= MAX_CHARS
