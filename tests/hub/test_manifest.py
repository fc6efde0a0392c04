"""freehold.json: read strictly, whoever wrote it."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import ModelFileError
from freehold.hub.manifest import MAX_BYTES, name_problem, parse_record, same_place
from stored_models import SAFETENSORS, record_of

GOOD = json.loads(record_of("tiny", SAFETENSORS).to_json())


def changed(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def with_file(**changes: Any) -> bytes:
    return changed(files=[{**GOOD["files"][0], **changes}])


def test_what_is_written_is_read() -> None:
    record = record_of("tiny", SAFETENSORS)
    assert parse_record(record.to_json(), "x") == record
    assert record.n_bytes == sum(map(len, SAFETENSORS.values()))
    assert set(GOOD) == {"format", "name", "source", "revision", "licence", "fetched", "files"}
    assert set(GOOD["files"][0]) == {"name", "size", "sha256"}


def test_texts_may_be_missing_and_other_keys_there() -> None:
    values = {key: GOOD[key] for key in ("format", "name", "files")}
    record = parse_record(json.dumps({**values, "later": 1}).encode(), "x")
    assert (record.source, record.licence) == ("", "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b" " * (MAX_BYTES + 1), "more than 4 MiB"),
        (b"[]", "not a JSON object"),
        (b'{"format": 1, "format": 1}', "a key occurs twice"),
        (b"{}", "its format is None"),
        (changed(format=2), "its format is 2"),
        (changed(format=True), "its format is True"),
        (changed(name="../x"), "name '../x'"),
        (changed(name="Upper"), "name 'Upper'"),
        (changed(name=1), "name 1"),
        (changed(licence="a\nb"), "licence is"),
        (changed(source="x" * 2001), "source is"),
        (changed(revision=3), "revision is 3"),
        (changed(files=[]), "files is []"),
        (changed(files=[1]), "a file is 1"),
        (changed(files={"a": 1}), "files is {'a': 1}"),
        (with_file(name=None), "a file's name is None"),
        (with_file(size=-1), "size"),
        (with_file(size=1.0), "size"),
        (with_file(size=True), "size"),
        (with_file(size=1 << 60), "size"),
        (with_file(sha256="0" * 63), "sha256"),
        (with_file(sha256="A" * 64), "sha256"),
        (with_file(name="a/../../b"), "a part is empty, '.' or '..'"),
        (changed(files=GOOD["files"] * 2), "twice"),
        (changed(files=[{**GOOD["files"][0], "name": name} for name in ("a.gguf", "A.GGUF")]), "twice"),
        (changed(files=[{**GOOD["files"][0], "name": name} for name in ("caf\u00e9", "cafe\u0301")]), "twice"),
        (changed(files=[{**GOOD["files"][0], "name": name} for name in ("a", "a/b")]), "lies inside of another"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ModelFileError, match=re.escape(words)):
        parse_record(data, "the place")


@pytest.mark.parametrize(
    "name", ["a.gguf", "model-00001-of-00002.safetensors", "original/model.safetensors", "ä ö.txt"]
)
def test_plain_names_are_fine(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "/etc/passwd",
            "a//b",
            "a/",
            "../a",
            "a/../b",
            "a\\b",
            "C:x",
            "a:b",
            "a\0b",
            "a\nb",
            "\u202eb",
        ),
        *(".hidden", "a/.b", "-rf", "~", " a", "a ", "a.", "nul", "CON.txt", "a/com1.gguf", "\ud800", "a" * 201),
        *("a/b/c/d/e", "é" * 200, "freehold.json", "Manifest.JSON", "weights.packed", "sub/weights.packed", "a*", 'a"'),
    ],
)
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    assert name_problem(name)


@given(st.text(st.characters(exclude_categories=()), max_size=30) | st.from_regex(r"[a./\\: ~-]{1,12}", fullmatch=True))
@settings(max_examples=400, deadline=None)
def test_an_accepted_name_stays_in_its_directory_everywhere(name: str) -> None:
    if name_problem(name) is None:
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(name)
            assert not path.is_absolute()
            assert not path.drive
            assert ".." not in path.parts
            assert kind("x", *name.split("/")).parts == ("x", *name.split("/"))
        assert Path(name).name


@given(st.text(max_size=12))
@settings(max_examples=100, deadline=None)
def test_the_same_place_whatever_the_case_and_the_form(name: str) -> None:
    assert same_place(unicodedata.normalize("NFD", name)) == same_place(unicodedata.normalize("NFC", name))
    assert same_place(same_place(name)) == same_place(name)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4))
@settings(max_examples=100, deadline=None)
def test_any_value_anywhere_is_read_or_refused(value: Any) -> None:
    for data in (*(changed(**{key: value}) for key in GOOD), *(with_file(**{key: value}) for key in GOOD["files"][0])):
        try:
            record = parse_record(data, "x")
        except ModelFileError:
            continue
        assert record.files
