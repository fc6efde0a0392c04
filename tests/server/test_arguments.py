"""Arguments of calls as objects: whatever a model wrote, an object goes out, and the same text comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server.arguments import as_object, as_text

KEY = "verbatim"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3))
@settings(max_examples=100, deadline=None)
def test_an_object_stays_as_it_is(value: dict[str, Any]) -> None:
    assert as_object(json.dumps(value), KEY) == value
    assert json.loads(as_text(value, KEY)) == value


@given(st.text(max_size=30) | st.text(alphabet='{}[]":,1eE+-.NaInf', max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_an_object(arguments: str) -> None:
    found = as_object(arguments, KEY)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    if arguments.strip():
        assert as_text(found, KEY) == arguments or json.loads(arguments) == found


@pytest.mark.parametrize(
    "arguments",
    ["[" * 100_000, '{"a":' * 51 + "1" + "}" * 51, '{"a":' + "9" * 5000 + "}", "-Infinity", '{"a":1e999}', "[1]", "5"],
)
def test_what_could_not_be_sent_and_sent_back_is_verbatim(arguments: str) -> None:
    assert as_object(arguments, KEY) == {KEY: arguments}
    assert as_text({KEY: arguments}, KEY) == arguments


def test_the_deepest_and_the_emptiest() -> None:
    deep = '{"a":' * 50 + "1" + "}" * 50
    assert as_text(as_object(deep, KEY), KEY) == deep
    assert as_object(" \n", KEY) == {}
    assert as_text({KEY: "x", "more": 1}, KEY) == '{"verbatim":"x","more":1}'
