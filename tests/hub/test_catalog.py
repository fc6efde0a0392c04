"""The catalogue that ships, and how names find their entries."""

from __future__ import annotations

import dataclasses
import re

import pytest

from freehold.errors import NotFoundError
from freehold.hub.catalog import (
    DEFAULT_MODEL,
    CatalogEntry,
    can_fetch,
    find_entry,
    get_entry,
    load_catalog,
    nearest,
    parse_catalog,
    require_source,
)
from freehold.hub.names import parse_source
from freehold.hub.store import check_name

TABLE = """
[{name}]
title = "T"
aliases = [{alias}]
licence = "MIT"
format = "gguf"
precision = "F32"
file = "{file}"
n_bytes = 1
sha256 = "{digest}"
source = {{ kind = "{kind}", package = "p", version = "1", member = "m", n_bytes = 1, sha256 = "{digest}" }}
"""


def table(**changes: str) -> str:
    values = {"name": "a", "alias": '"a:1b"', "file": "f.gguf", "digest": "0" * 64, "kind": "wheel", **changes}
    return TABLE.format(**values)


def test_the_shipped_catalogue_pins_every_byte() -> None:
    catalog = load_catalog()
    assert DEFAULT_MODEL in catalog
    for name, entry in catalog.items():
        assert name == check_name(name)
        assert can_fetch(entry), name
        if not isinstance(entry, CatalogEntry):
            continue
        for pinned in (entry, entry.source):
            assert re.fullmatch("[0-9a-f]{64}", pinned.sha256)
            assert pinned.n_bytes > 1000


def test_the_shipped_catalogue_names_no_host() -> None:
    assert not any("://" in str(value) for entry in load_catalog().values() for value in vars(entry).values())


@pytest.mark.parametrize("word", ["smollm2", "SmolLM2", "smollm2:135M", "SmolLM2-135M-Instruct"])
def test_names_and_aliases_in_any_case(word: str) -> None:
    entry = find_entry(word)
    assert entry is not None
    assert entry.name == "smollm2"


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(NotFoundError, match=r"no model 'smolm2' .did you mean smollm2"):
        get_entry("smolm2")


def test_nothing_near_suggests_nothing() -> None:
    assert nearest("zzz", ["smollm2"]) == ""


def test_a_valid_table_parses() -> None:
    entry = require_source(parse_catalog(table())["a"])
    assert isinstance(entry, CatalogEntry)
    assert (entry.aliases, entry.source.package, str(entry.source)) == (("a:1b",), "p", "p 1 (Python wheel)")


def test_a_model_without_a_source_says_what_to_do() -> None:
    for word, size in (("gpt-oss:20b", "13.8 GB"), ("GPT-OSS-120b", "65.2 GB")):
        entry = dataclasses.replace(get_entry(word), sources=())
        with pytest.raises(NotFoundError, match=rf"cannot be fetched: .*{size}, Apache-2.0.*directory.*synth"):
            require_source(entry)


def test_sources_are_repositories_that_names_can_read() -> None:
    for entry in load_catalog().values():
        for source in entry.sources:
            assert str(parse_source(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        table(file="../f"),
        table(digest="F" * 64),
        table(kind="magnet"),
        table(alias='"A"'),
        table() + table(name="b"),
        table(alias='"b"') + table(name="b", alias=""),
    ],
)
def test_mistakes_in_the_catalogue_are_bugs(text: str) -> None:
    with pytest.raises(AssertionError):
        parse_catalog(text)
