"""The container of packed weights: what was written is read back, and nothing else is taken for it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from freehold.errors import ModelFileError, NotFoundError
from freehold.weights import packed_file
from freehold.weights.packed_file import ALIGNMENT, PAGE, Identity, PackedFile, PackedMatrix, write_packed

IDENTITY = Identity("these files", "auto", 7)
PREAMBLE_BYTES = 24


def matrix(name: str, n_bytes: int, expert: int = 0) -> PackedMatrix:
    data = np.random.default_rng(n_bytes + expert).integers(0, 256, n_bytes, np.uint8)
    return PackedMatrix(name, expert, "Q8_0", 16, 32, data)


MATRICES = [matrix("a", 100), matrix("b", 5000, 0), matrix("b", 5000, 1), matrix("ü ☃", 64), matrix("c", 3 * PAGE)]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "file"
    assert write_packed(path, IDENTITY, MATRICES)
    return path.read_bytes()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], PackedFile]:
    def write_and_open(content: bytes) -> PackedFile:
        path = tmp_path / "file"
        path.write_bytes(content)
        return PackedFile(path, IDENTITY)

    return write_and_open


def same(found: PackedMatrix | None, expected: PackedMatrix) -> bool:
    assert found is not None
    facts = [(m.name, m.expert, m.format, m.n_rows, m.n_cols) for m in (found, expected)]
    return facts[0] == facts[1] and np.array_equal(found.data, expected.data)


def table_of(content: bytes) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        content[PREAMBLE_BYTES : PREAMBLE_BYTES + int.from_bytes(content[16:24], "little")]
    )
    return table


def with_table(content: bytes, table: Any) -> bytes:
    """The file with another table, and the checksum of that."""
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    head = content[:12] + zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(8, "little") + text
    assert len(head) <= PAGE
    return head.ljust(PAGE) + content[PAGE:]


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=8),
    write_bytes=st.sampled_from([ALIGNMENT, PAGE, 3 * PAGE]),
    stride=st.sampled_from([PAGE, 2 * PAGE]),
)
def test_what_is_written_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], write_bytes: int, stride: int
) -> None:
    monkeypatch.setattr(packed_file, "_WRITE_BYTES", write_bytes)
    monkeypatch.setattr(packed_file, "_sync", lambda file: None)  # the disk is slow, and not tested
    monkeypatch.setattr(packed_file, "SAMPLE_STRIDE", stride)
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    matrices = [matrix(f"tensor {index % 3}", size, index) for index, size in enumerate(sizes)]
    assert write_packed(path, IDENTITY, matrices)
    file = PackedFile(path, IDENTITY)
    assert file.n_bytes == path.stat().st_size
    for expected in matrices:
        found = file.find(expected.name, expected.expert)
        assert same(found, expected)
        assert found is not None
        assert found.data.ctypes.data % ALIGNMENT == 0
        assert not found.data.flags.writeable
    assert file.find("tensor 0", len(sizes)) is None
    assert file.find("tensor", 0) is None


def test_a_table_of_many_pages(tmp_path: Path) -> None:
    matrices = [matrix("experts", 64, expert) for expert in range(3000)]
    assert write_packed(tmp_path / "file", IDENTITY, matrices)
    file = PackedFile(tmp_path / "file", IDENTITY)
    assert all(same(file.find("experts", m.expert), m) for m in matrices)


def test_matrices_outlive_the_file(tmp_path: Path, content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    found = opened(content).find("a", 0)
    (tmp_path / "file").unlink()
    assert same(found, MATRICES[0])


def test_every_byte_of_the_table_counts(content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    length = PREAMBLE_BYTES + int.from_bytes(content[16:24], "little")
    for at in range(length):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(ModelFileError):
            opened(bytes(damaged))


@pytest.mark.parametrize("at", [PAGE, 2 * PAGE - 1, -1, -PAGE])
def test_damage_to_sampled_pages_is_seen(at: int, content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    damaged = bytearray(content)
    damaged[at] ^= 1
    with pytest.raises(ModelFileError, match="damaged"):
        opened(bytes(damaged))


def test_a_lost_piece_as_large_as_the_stride_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[bytes], PackedFile]
) -> None:
    monkeypatch.setattr(packed_file, "SAMPLE_STRIDE", 8 * PAGE)
    path = tmp_path / "original"
    assert write_packed(path, IDENTITY, [matrix("a", 100 * PAGE)])
    content = path.read_bytes()
    for start in range(PAGE, len(content) - 9 * PAGE, 5 * PAGE):
        with pytest.raises(ModelFileError, match="damaged"):
            opened(content[:start] + bytes(9 * PAGE) + content[start + 9 * PAGE :])


@pytest.mark.parametrize("n_bytes", [0, 1, 23, 24, 100, PAGE, PAGE + 1, -1])
def test_truncated_files_are_refused(n_bytes: int, content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    with pytest.raises(ModelFileError):
        opened(content[:n_bytes])


def test_a_longer_file_is_refused(content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    with pytest.raises(ModelFileError, match="bytes"):
        opened(content + bytes(64))


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=200), magic=st.booleans())
def test_garbage_is_refused(garbage: bytes, magic: bool, opened: Callable[[bytes], PackedFile]) -> None:
    with pytest.raises(ModelFileError):
        opened((b"FHPACKED" + (7).to_bytes(4, "little") if magic else b"") + garbage)


@pytest.mark.parametrize(
    ("identity", "match"),
    [
        (Identity("other files", "auto", 7), "other files"),
        (Identity("these files", "native", 7), "rounding"),
        (Identity("these files", "auto", 8), "layout 7"),
    ],
)
def test_what_was_made_otherwise_is_refused(tmp_path: Path, content: bytes, identity: Identity, match: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ModelFileError, match=match):
        PackedFile(tmp_path / "file", identity)


def test_other_things_than_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory"):
        with pytest.raises(ModelFileError):
            PackedFile(tmp_path / name, IDENTITY)
    with pytest.raises(NotFoundError):
        PackedFile(tmp_path / "nothing", IDENTITY)


def _swapped(rows: list[Any]) -> list[Any]:
    return [rows[1], rows[0], *rows[2:]]


def _with(index: int, field: int, value: Any) -> Callable[[list[Any]], Any]:
    def changed(rows: list[Any]) -> list[Any]:
        rows[index][field] = value
        return rows

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [],
        lambda rows: None,
        lambda rows: {"a": rows},
        lambda rows: rows[:-1],
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[-1]],
        lambda rows: [row[:-1] for row in rows],
        lambda rows: [*rows[:-1], "c"],
        _swapped,
        _with(0, 0, 5),
        _with(0, 1, -1),
        _with(0, 1, True),
        _with(0, 1, 1 << 32),
        _with(0, 2, "Q9_9"),
        _with(0, 2, ["Q8_0"]),
        _with(0, 3, 0),
        _with(0, 4, 1 << 62),
        _with(0, 5, PAGE + 64),
        _with(1, 5, PAGE),
        _with(1, 5, -64),
        _with(1, 6, 10**30),
        _with(1, 6, 100),
        _with(1, 6, 5000.0),
        _with(2, 1, 0),
        _with(4, 6, 3 * PAGE + 64),
    ],
)
def test_hostile_tables_are_refused(
    change: Callable[[list[Any]], Any], content: bytes, opened: Callable[[bytes], PackedFile]
) -> None:
    table = table_of(content)
    table["matrices"] = change(table["matrices"])
    with pytest.raises(ModelFileError):
        opened(with_table(content, table))


@pytest.mark.parametrize("key", ["source", "rounding", "samples", "matrices"])
def test_every_key_of_the_table_is_needed(key: str, content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    table = table_of(content)
    del table[key]
    with pytest.raises(ModelFileError):
        opened(with_table(content, table))


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"source":NaN}', b'{"source":"a","source":"a"}', b"[" * 3000])
def test_tables_that_are_not_strict_json_are_refused(
    text: bytes, content: bytes, opened: Callable[[bytes], PackedFile]
) -> None:
    with pytest.raises(ModelFileError):
        opened(with_table(content, text))


def test_the_table_written_anew_is_the_same_file(content: bytes, opened: Callable[[bytes], PackedFile]) -> None:
    """So that the tests above fail for their reason alone."""
    assert with_table(content, table_of(content)) == content
    assert same(opened(content).find("ü ☃", 0), MATRICES[3])


def test_whoever_stops_leaves_no_valid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "_WRITE_BYTES", PAGE)
    monkeypatch.setattr(packed_file, "_SYNC_BYTES", 2 * PAGE)
    total = -1
    for stop_at in range(20):
        path = tmp_path / f"file {stop_at}"
        asked: list[int] = []

        def go_on(done: int, asked: list[int] = asked, stop_at: int = stop_at) -> bool:
            asked.append(done)
            return len(asked) <= stop_at

        if write_packed(path, IDENTITY, MATRICES, go_on):
            total = asked[-1]
            assert PackedFile(path, IDENTITY).n_bytes == total
            break
        with pytest.raises(ModelFileError):
            PackedFile(path, IDENTITY)
    assert total > 0


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_packed(tmp_path / "file", IDENTITY, MATRICES)
    assert (tmp_path / "file").read_bytes() == b"mine"
