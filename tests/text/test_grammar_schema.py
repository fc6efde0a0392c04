"""JSON Schemas as grammars: whatever is said under the mask is valid, and what cannot be enforced is named."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.text.grammar_schema import MAX_CHARS, MAX_DEPTH, MAX_LEVELS, MAX_PROPERTIES, enforceable
from freehold.text.grammar_source import rule_body, unenforced, unenforced_in
from freehold.text.request import ChatRequest, Grammar
from grammar_walks import at_random, preferring, text_of, walk

NODE = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}

SCHEMAS: dict[str, Any] = {
    "any object": {"type": "object"},
    "anything": True,
    "no properties": {"type": "object", "properties": {}},
    "nothing but braces": {"type": "object", "properties": {}, "additionalProperties": False},
    "properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}, "c": {"type": "boolean"}},
        "required": ["a", "c"],
        "additionalProperties": False,
    },
    "a map": {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1, "maxProperties": 3},
    "patterns": {"type": "object", "patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": False},
    "long strings": {"type": "string", "maxLength": 65536},
    "long strings of few letters": {"type": "string", "maxLength": 65536, "pattern": "^[a-c ]*$"},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^(a|b/c)+\\d$"},
    "format": {"type": "string", "format": "date"},
    "enum": {"enum": [1, "two", None, {"three": [3, 3.5]}, "ü\n€"]},
    "const": {"const": {"a": [1, {"b": "c"}]}},
    "range": {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
    "multiples": {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99},
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "anyOf": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}, {"enum": [7, 8]}]},
    "oneOf": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": name}, name: {"type": "boolean"}}, "required": ["kind"]}
            for name in ("a", "b")
        ]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 5}]},
    "reference": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}, "b": {"enum": [1]}},
    },
    "recursion": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "recursion to the root": {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False},
    "places by path": {
        "type": "object",
        "properties": {"a/b": {"enum": [1, 2]}, "c": {"$ref": "#/properties/a~1b"}},
        "required": ["c"],
    },
    "annotations": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.com/x",
        "title": "T",
        "type": "integer",
        "format": "int32",
        "nullable": True,
        "x-order": 3,
        "maximum": 9,
    },
    "a property named like a keyword": {
        "type": "object",
        "properties": {"not": {"enum": [1]}, "$ref": {"enum": [2]}, "properties": {"enum": [3]}},
        "required": ["not", "$ref", "properties"],
    },
}


def said(schema: Any, seed: int) -> str:
    return text_of(walk(f"start: {rule_body(Grammar('json_schema', schema))}", at_random(seed)))


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_what_is_said_is_valid(schema: Any) -> None:
    for seed in range(8):
        jsonschema.validate(json.loads(said(schema, seed)), schema)


def test_any_json_object() -> None:
    for seed in range(10):
        assert isinstance(json.loads(text_of(walk(f"start: {rule_body(Grammar('json'))}", at_random(seed)))), dict)


def limits(low: str, high: str, most: int) -> st.SearchStrategy[dict[str, int]]:
    pairs = st.lists(st.integers(0, most), min_size=2, max_size=2).map(sorted)
    return st.one_of(st.just({}), pairs.map(lambda pair: {low: pair[0], high: pair[1]}))


scalars: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "number"}, {"enum": ["a", 1, None]}]),
    limits("minLength", "maxLength", 5).map(lambda kept: {"type": "string", **kept}),
    limits("minimum", "maximum", 100).map(lambda kept: {"type": "integer", **kept}),
)
names = st.text("ab \"\\/é<|>.'", min_size=1, max_size=4)


def wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda fields, needed, closed: {
            "type": "object",
            "properties": fields,
            "required": [name for name, is_needed in zip(fields, needed, strict=False) if is_needed],
            **({"additionalProperties": False} if closed else {}),
        },
        st.dictionaries(names, inner, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.booleans(),
    )
    arrays = st.builds(
        lambda items, kept: {"type": "array", "items": items, **kept}, inner, limits("minItems", "maxItems", 3)
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda any_of: {"anyOf": any_of}))


@settings(max_examples=60, deadline=None)
@given(st.recursive(scalars, wider, max_leaves=6), st.integers(0, 1000))
def test_what_is_said_is_valid_whatever_the_schema(schema: dict[str, Any], seed: int) -> None:
    jsonschema.validate(json.loads(said(schema, seed)), schema)


def test_a_model_that_would_rather_write_blanks_comes_to_an_end() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
            "b": {"type": "object", "properties": {"c": {"enum": ["x", 1]}}, "required": ["c"]},
            "d": {"type": "string", "maxLength": 20},
        },
        "required": ["a", "b", "d"],
        "additionalProperties": False,
    }
    text = text_of(walk(f"start: {rule_body(Grammar('json_schema', schema))}", preferring(" ", "\n", "\t")))
    jsonschema.validate(json.loads(text), schema)
    assert "\n" not in text
    assert "\t" not in text
    assert "  " not in text.replace(" " * 20, "")  # but for the string, which is the model's own
    assert ", " in text
    assert ": " in text


WHERE = "tools[0] (get_weather).parameters"

REFUSED: list[tuple[Any, str]] = [
    ({"properties": {"x": {"contentEncoding": "base64"}}}, ".properties.x: the JSON Schema keyword 'contentEncoding'"),
    ({"items": {"not": {"type": "null"}}}, ".items: the JSON Schema keyword 'not'"),
    ({"anyOf": [True, {"if": True}]}, ".anyOf[1]: the JSON Schema keyword 'if'"),
    ({"uniqueItems": True}, ": the JSON Schema keyword 'uniqueItems'"),
    ({"maxLenght": 3}, ": the JSON Schema keyword 'maxLenght'"),
    (
        {"type": "string", "format": "regex"},
        ": the JSON Schema keyword 'format' cannot be enforced ('regex' is not one",
    ),
    ({"properties": {"a": {"pattern": "(?=a)b"}}}, ".properties.a: the JSON Schema keyword 'pattern'"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "\\bx"}}}, ".$defs.a: the JSON Schema keyword 'pattern'"),
    (
        {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}},
        ".items: the JSON Schema keyword 'oneOf' cannot be enforced (its schemas are not visibly exclusive",
    ),
    ({"patternProperties": {"^a": {}, "^ab": {}}}, ": the JSON Schema keyword 'patternProperties'"),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
        ": the JSON Schema keyword 'minProperties'",
    ),
    ({"exclusiveMinimum": True, "minimum": 2}, ": the JSON Schema keyword 'exclusiveMinimum'"),
    ({"type": "integer", "minimum": 9, "maximum": 2}, "minimum (9) is greater than maximum (2)"),
    ({"type": "strnig"}, ": the JSON Schema keyword 'type' cannot be enforced (Invalid type: strnig)"),
    (
        {"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}},
        "keyword 'properties' cannot be enforced (it has",
    ),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_a_keyword_that_cannot_be_enforced_is_named_or_left_to_the_model(schema: Any, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        rule_body(Grammar("json_schema", schema, where=WHERE))
    assert (WHERE + message if message.startswith((":", ".")) else message) in str(refused.value)
    lenient = Grammar("json_schema", schema, strict=False, where=WHERE)
    assert rule_body(lenient)
    [path, *_] = unenforced(lenient)
    assert path.startswith(WHERE)


def test_the_rest_is_enforced_where_a_keyword_is_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}, "required": ["a"]}
    grammar = Grammar("json_schema", schema, strict=False)
    assert unenforced(grammar) == ["answer.properties.a.not"]
    assert isinstance(json.loads(text_of(walk(f"start: {rule_body(grammar)}", at_random(1))))["a"], int)
    either = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    grammar = Grammar("json_schema", either, strict=False)
    assert unenforced(grammar) == ["answer.oneOf"]
    assert isinstance(json.loads(text_of(walk(f"start: {rule_body(grammar)}", at_random(1)))), (int, float))


def test_a_request_lists_all_that_is_left_to_the_model() -> None:
    schema = {"type": "array", "uniqueItems": True}
    tools = tuple(
        {"type": "function", "function": {"name": name, "parameters": {"properties": {"x": schema}}}} for name in "fg"
    )
    answer = Grammar("json_schema", schema, strict=False, where="response_format.schema")
    calls = [f"tools[{i}] ({name}).parameters.properties.x.uniqueItems" for i, name in enumerate("fg")]
    assert unenforced_in(ChatRequest((), tools, answer=answer)) == ["response_format.schema.uniqueItems", *calls]
    assert unenforced_in(ChatRequest((), tools, enforce=False)) == []
    assert unenforced_in(ChatRequest((), tools, tool_choice="none")) == []
    assert unenforced_in(ChatRequest((), answer=Grammar("regex", "a"))) == []


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "http://example.com/x"}, r"\$ref is 'http://example.com/x'; expected a place in the same schema"),
        ({"items": {"$ref": "#anchor"}}, r"items.\$ref is '#anchor'"),
        ({"$ref": 3}, r"\$ref is 3"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "leads nowhere"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "leads back to itself"),
        ({"properties": {"p": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "to itself"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "leads back to itself"),
        ({"properties": []}, "properties is a list; expected an object of JSON schemas"),
        ({"anyOf": {}}, "anyOf is a dict; expected a list of JSON schemas"),
        ({"items": "string"}, "items is a str; expected a JSON schema"),
        ({"enum": [float("inf")]}, "cannot be written as JSON"),
        ({"enum": [10**5000]}, "cannot be written as JSON"),
        ({"enum": [object()]}, "holds a object"),
        ({"enum": [{1: 2}]}, "the key 1"),
        ({"description": "x" * MAX_CHARS}, "characters long"),
        (False, "no text matches"),
    ],
)
def test_what_is_no_schema_is_refused_in_any_case(schema: Any, message: str, strict: bool) -> None:
    with pytest.raises(RequestError, match=message):
        enforceable(schema, strict, "w")


def nested(depth: int, key: str) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {key: [schema] if key == "allOf" else {"a": schema} if key == "properties" else schema}
    return schema


@pytest.mark.parametrize("key", ["items", "properties", "allOf", "additionalProperties"])
def test_nesting_has_a_limit(key: str) -> None:
    levels = MAX_DEPTH // (1 if key in ("items", "additionalProperties") else 2)
    assert enforceable(nested(levels - 1, key), True, "w").unenforced == ()
    with pytest.raises(RequestError, match="nested more than"):
        enforceable(nested(levels + 1, key), True, "w")
    with pytest.raises(RequestError, match="nested more than"):
        enforceable(nested(100_000, key), True, "w")


def chain(n_links: int) -> dict[str, Any]:
    """A schema whose definitions lead to one another, each but once."""
    links = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(n_links)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n_links}": {"type": "null"}}}


def test_spelling_one_reference_in_many_ways_does_not_multiply_the_work() -> None:
    ways = [{"$ref": "#/$defs/" + "".join(f"%{ord(c):02x}" if i >> j & 1 else c for j, c in enumerate("abcdefgh"))}
            for i in range(256)]  # fmt: skip
    with pytest.raises(RequestError, match="more than 10000 schemas"):
        enforceable({"items": {"anyOf": ways}, "$defs": {"abcdefgh": {"anyOf": [{}] * 100}}}, True, "w")


def test_references_count_as_nesting() -> None:
    assert enforceable(chain(MAX_LEVELS // 2 - 2), True, "w").unenforced == ()
    with pytest.raises(RequestError, match="leads through more than"):
        enforceable(chain(MAX_LEVELS), True, "w")


NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize("schema", [NAMED, {"anyOf": [NAMED]}, {"type": "array", "items": NAMED, "minItems": 1}])
def test_an_object_gets_no_properties_that_nobody_named(schema: Any) -> None:
    for seed in range(8):
        text = said(schema, seed)
        found = json.loads(text)
        for each in found if isinstance(found, list) else [found]:
            assert each.keys() == {"a"}


@pytest.mark.parametrize(
    "schema",
    [
        {**NAMED, "additionalProperties": True},
        {**NAMED, "required": ["b"]},
        {**NAMED, "minProperties": 2},
        {"allOf": [NAMED, {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]},
        {**NAMED, "anyOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
    ],
)
def test_an_object_that_needs_others_gets_them(schema: Any) -> None:
    for seed in range(8):
        found = json.loads(said(schema, seed))
        jsonschema.validate(found, schema)
