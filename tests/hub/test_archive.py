"""Archives: what is written any tar reads; what is read may come from anyone."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, ModelFileError, RequestError, StoreError
from freehold.hub import archive as module
from freehold.hub.archive import archive_bytes, read_files, read_record, write_archive
from freehold.hub.manifest import MANIFEST_NAME, Record
from stored_models import SAFETENSORS, archive, archive_of, member, record_of, tar_names

ODD = {"ä ö ü.gguf": b"x" * 511, "sub/long" + "g" * 150: b"", "sub/b": b"y" * 512, "c": b"z" * 513}


def lay_out(directory: Path, files: dict[str, bytes]) -> dict[str, Path]:
    found = {}
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found[name] = path
    return found


def unpack(data: bytes, directory: Path) -> Record:
    stream = io.BytesIO(data)
    record = read_record(stream, "x.tar")
    directory.mkdir(parents=True, exist_ok=True)
    read_files(stream, record, directory, "x.tar")
    return record


@pytest.mark.parametrize("files", [SAFETENSORS, ODD])
def test_out_and_in_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    record, seen = record_of("tiny", files), list[tuple[int, int]]()
    target = tmp_path / "out.tar"
    write_archive(record, lay_out(tmp_path / "in", files), target, lambda *done: seen.append(done))
    data = target.read_bytes()
    assert tar_names(data) == [MANIFEST_NAME, *files]
    with tarfile.open(target) as tar:
        assert {(info.mtime, info.uid, info.uname, info.mode) for info in tar} == {(0, 0, "", 0o644)}
        assert {name: tar.extractfile(name).read() for name in files} == files  # type: ignore[union-attr]
    assert len(data) <= archive_bytes(record)
    assert seen[-1] == (record.n_bytes, record.n_bytes)
    assert unpack(data, tmp_path / "new") == record
    assert {name: (tmp_path / "new" / name).read_bytes() for name in files} == files
    assert not list(tmp_path.glob("*.incomplete"))


def test_equal_models_make_equal_archives(tmp_path: Path) -> None:
    sources = lay_out(tmp_path / "in", SAFETENSORS)
    for name in ("a", "b"):
        write_archive(record_of("tiny", SAFETENSORS), sources, tmp_path / name)
        os.utime(sources["config.json"], (1, 1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sizes_beyond_plain_headers(tmp_path: Path) -> None:
    header = module._header("big", 9 << 30)
    info = module._next_member(io.BytesIO(header), "x")
    assert info is not None
    assert (info.name, info.size) == ("big", 9 << 30)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    sources, record = lay_out(tmp_path / "in", SAFETENSORS), record_of("tiny", SAFETENSORS)
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(RequestError, match="exists already"):
        write_archive(record, sources, tmp_path / "there")
    (tmp_path / "new.incomplete").write_bytes(b"mine")
    with pytest.raises(RequestError, match="another export is writing"):
        write_archive(record, sources, tmp_path / "new")
    assert {path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == {b"mine"}
    with pytest.raises(StoreError, match="cannot write"):
        write_archive(record, sources, tmp_path / "no" / "where")


@pytest.mark.parametrize("content", [b"", b"{", b"{}{}", b"[]", None])
def test_a_file_that_is_not_as_recorded_ends_the_export(tmp_path: Path, content: bytes | None) -> None:
    sources, target = lay_out(tmp_path / "in", SAFETENSORS), tmp_path / "out.tar"
    sources["config.json"].unlink() if content is None else sources["config.json"].write_bytes(content)
    with pytest.raises(ModelFileError, match="nothing was exported"):
        write_archive(record_of("tiny", SAFETENSORS), sources, target)
    assert os.listdir(tmp_path) == ["in"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(record_of("tiny", SAFETENSORS), lay_out(tmp_path / "in", SAFETENSORS), tmp_path / "out.tar", stop)
    assert os.listdir(tmp_path) == ["in"]


GOOD = record_of("tiny", {"a.gguf": b"abc"})
A = member("a.gguf", b"abc")
PAX = tarfile.XHDTYPE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (bytes(1024), "it is empty"),
        (b"GGUF" * 200, "header is damaged"),
        (b"\x1f\x8b" + bytes(600), "header is damaged"),
        (A, "its first member is 'a.gguf'"),
        (member(MANIFEST_NAME, b"{}"), "its format is None"),
        (archive(GOOD, []), "ends before a.gguf"),
        (archive(GOOD, [A])[:-1600], "cut short"),
        (archive(GOOD, [A, A]), "does not list, or twice"),
        (archive(GOOD, [A, member("b", b"")]), "does not list"),
        (archive(GOOD, [member("../a.gguf", b"abc")]), "does not list"),
        (archive(GOOD, [member("a.gguf", b"abd")]), "SHA-256"),
        (archive(GOOD, [member("a.gguf", b"abcd")]), "4 bytes"),
        (archive(GOOD, [member("a.gguf", kind=tarfile.SYMTYPE, link="/etc/passwd")]), "is a link"),
        (archive(GOOD, [member("a.gguf", kind=tarfile.LNKTYPE, link="freehold.json")]), "is a link"),
        (archive(GOOD, [member("a.gguf", kind=tarfile.CHRTYPE)]), "is a device"),
        (archive(GOOD, [member("a.gguf", kind=tarfile.FIFOTYPE)]), "is a device"),
        (archive(GOOD, [member("a.gguf", kind=tarfile.DIRTYPE)]), "is a directory"),
        (archive(GOOD, [member("a.gguf", b"abc", tarfile.GNUTYPE_SPARSE)]), "is of the kind b'S'"),
        (archive(GOOD, [member("././@LongLink", b"abc", tarfile.GNUTYPE_LONGNAME)]), "is of the kind b'L'"),
        (archive(GOOD, [member("x", b"13 path=../x\n", PAX), A]), "does not list"),
        (archive(GOOD, [member("x", b"19 linkpath=/etc/x\n", PAX), A]), "expected path or size"),
        (archive(GOOD, [member("x", b"rubbish", PAX), A]), "expected path or size"),
        (archive(GOOD, [member("x", b"11 size=-1\n", PAX), A]), "the size of"),
        (archive(GOOD, [member("x", b"12 path=\xff\xff\xff\n", PAX), A]), "not UTF-8"),
        (archive(GOOD, [member("x", bytes(1 << 17), PAX), A]), "pax header is too large"),
        (archive(GOOD, [member("x", b"", PAX)]), "ends after a pax header"),
        (archive(GOOD, [member("x", b"", PAX), member("x", b"", PAX), A]), "kind b'x'"),
    ],
)
def test_hostile_archives_are_refused_by_what_is_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ModelFileError, match=re.escape(words)):
        unpack(data, tmp_path / "in")
    assert os.listdir(tmp_path) == ["in"]
    assert set(os.listdir(tmp_path / "in")) <= {"a.gguf"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.gguf", "../a.gguf", "/a", "a/b", "freehold.json"]) | st.text(max_size=20),
            st.binary(max_size=4) | st.just(b"abc"),
            st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, PAX, tarfile.SYMTYPE, tarfile.DIRTYPE, b"7"]),
        ),
        max_size=3,
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_members_only_what_is_listed_is_written(tmp_path_factory: Any, members: Any) -> None:
    top = tmp_path_factory.mktemp("hostile")
    try:
        data = archive(GOOD, [member(name.replace("\0", "_"), content, kind) for name, content, kind in members])
    except (ValueError, UnicodeError):  # not even a hostile archive can have this header
        return
    try:
        unpack(data, top / "in" / "deep")
        assert (top / "in" / "deep" / "a.gguf").read_bytes() == b"abc"
    except ModelFileError:
        pass
    assert {path.name for path in top.rglob("*")} <= {"in", "deep", "a.gguf"}


@given(st.integers(0, len(archive_of(GOOD, {"a.gguf": b"abc"})) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_byte_may_be_wrong(tmp_path_factory: Any, place: int, value: int) -> None:
    data = bytearray(archive_of(GOOD, {"a.gguf": b"abc"}))
    data[place] = value
    top = tmp_path_factory.mktemp("flipped")
    try:
        record = unpack(bytes(data), top)
    except FreeholdError:
        return
    assert [file.sha256 for file in record.files] == [GOOD.files[0].sha256]
