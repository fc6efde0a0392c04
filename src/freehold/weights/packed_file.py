"""The container of packed weights: matrices as the kernels read them, kept for the next load.

Owns the layout of the file, its strict reading and its writing. Knows bytes, names and shapes, not what packing does to
numbers, nor where such files lie and when they are written. A file is whole or refused:

    magic | layout u32 | CRC-32 of the table u32 | its length u64 | table, JSON, blanks to a whole page | matrices

The table is {"source", "rounding", "samples", "matrices": [[name, expert, format, rows, columns, start, bytes], ...]}.
Matrices follow each other in the order in which they are loaded, each on a multiple of 64 bytes, and end the file. The
table is covered by its checksum; of the matrices one page in 32 MiB is (`samples`). That finds lost and foreign pieces
of a file within milliseconds, not single bits, for which the whole of it would have to be read.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from freehold.errors import ModelFileError
from freehold.formats import FORMATS, UInt8Array
from freehold.weights.mapping import MappedFile
from freehold.weights.strict_json import parse_object

ALIGNMENT = 64
"""Of a matrix, so that no vector of one crosses a cache line."""

PAGE = 4096
SAMPLE_STRIDE = 32 << 20
"""Bytes of the file per sampled page. Sampling may read from a disk, 2 MiB and more a page, so it is kept rare."""

_MAGIC = b"FHPACKED"
_PREAMBLE = struct.Struct("<8sIIQ")
_MAX_TABLE_BYTES = 64 << 20
_WRITE_BYTES = 8 << 20
"""At a time, from multiples of it: a write that begins on a large boundary leaves huge pages in the page cache, which
the next load then maps as such. Pages of 4 kB can cost a decoding model a third of the memory's bandwidth."""
_SYNC_BYTES = 64 << 20
"""Dirty pages that we leave to the system at most. Written pages stay in its cache: the next load wants just them."""


@dataclass(frozen=True)
class Identity:
    """What a packed file must have been made from, and how, to be of use; any text."""

    source: str
    rounding: str
    layout: int  # version of the arrangement that packing gives, 0 to 2^32 - 1


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """One packed matrix: of the tensor `name`, or of its expert number `expert`."""

    name: str
    expert: int  # 0 where the tensor is one matrix
    format: str  # of freehold.formats
    n_rows: int
    n_cols: int
    data: UInt8Array  # [n_bytes]


@dataclass(frozen=True)
class _Entry:
    format: str
    n_rows: int
    n_cols: int
    start: int  # byte of the file
    n_bytes: int


class PackedFile:
    """An open packed file. Matrices are views of the map and stay valid after the object is gone."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Raises NotFoundError, or ModelFileError where the file is stale, damaged or none at all."""
        self._path = path
        if path.is_symlink():  # where it leads, others may write
            raise ModelFileError(f"{path} is a symbolic link, not a file")
        self._file = MappedFile(path)
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            self._file.bytes.madvise(mmap.MADV_HUGEPAGE)
        table, data_start = self._read_table(identity)
        self._entries = self._check_entries(table.get("matrices"), data_start)
        if table.get("samples") != _samples(self._file.n_bytes, data_start, self._page):
            raise ModelFileError(f"{path} is damaged: its weights are not those that were written")
        self.n_bytes = self._file.n_bytes

    def find(self, name: str, expert: int) -> PackedMatrix | None:
        """The matrix, without touching its pages; None if the file has none of that key."""
        entry = self._entries.get((name, expert))
        if entry is None:
            return None
        data = self._file.array(entry.start, entry.n_bytes)
        return PackedMatrix(name, expert, entry.format, entry.n_rows, entry.n_cols, data)

    def _read_table(self, identity: Identity) -> tuple[dict[str, Any], int]:
        """The table, and the byte at which the matrices begin."""
        file, path = self._file, self._path
        if file.n_bytes < _PREAMBLE.size:
            raise ModelFileError(f"{path} has {file.n_bytes} bytes: it is truncated")
        magic, layout, checksum, length = _PREAMBLE.unpack(file.bytes[: _PREAMBLE.size])
        if magic != _MAGIC:
            raise ModelFileError(f"{path} is no file of packed weights")
        if layout != identity.layout:
            raise ModelFileError(f"{path} is of layout {layout}; this version packs layout {identity.layout}")
        if length > min(_MAX_TABLE_BYTES, file.n_bytes - _PREAMBLE.size):
            raise ModelFileError(f"{path} claims a table of {length} bytes: it is truncated or damaged")
        text = file.bytes[_PREAMBLE.size : _PREAMBLE.size + length]
        if zlib.crc32(text) != checksum:
            raise ModelFileError(f"{path} is damaged: its table does not have its checksum")
        table = parse_object(text, f"the table of {path}")
        if table.get("source") != identity.source:
            raise ModelFileError(f"{path} was made from other files than the model has now")
        if table.get("rounding") != identity.rounding:
            raise ModelFileError(f"{path} was made with another rounding of weights")
        return table, _aligned(_PREAMBLE.size + length, PAGE)

    def _check_entries(self, rows: Any, data_start: int) -> Mapping[tuple[str, int], _Entry]:
        """The matrices by key: each described soundly, one after the other, from `data_start` to the file's end."""
        entries: dict[tuple[str, int], _Entry] = {}
        end = data_start
        for row in rows if isinstance(rows, list) else ():
            if not _is_row(row):
                raise ModelFileError(f"{self._path}: matrix {len(entries)} of the table is not described as expected")
            name, expert, fmt, n_rows, n_cols, start, n_bytes = row
            if start != _aligned(end, ALIGNMENT) or (name, expert) in entries:
                raise ModelFileError(f"{self._path}: matrix {len(entries)} of the table overlaps or repeats another")
            entries[name, expert] = _Entry(fmt, n_rows, n_cols, start, n_bytes)
            end = start + n_bytes
        if not entries or end != self._file.n_bytes:
            raise ModelFileError(
                f"{self._path} has {self._file.n_bytes} bytes; its table describes {end}: it is truncated or damaged"
            )
        return entries

    def _page(self, start: int) -> bytes:
        return self._file.bytes[start : start + PAGE]


def packed_bytes(matrices: Sequence[PackedMatrix]) -> int:
    """About the size of the file that holds `matrices`, in bytes."""
    return sum(_aligned(matrix.data.nbytes, ALIGNMENT) for matrix in matrices)


def write_packed(
    path: Path, identity: Identity, matrices: Sequence[PackedMatrix], go_on: Callable[[int], bool] = lambda done: True
) -> bool:
    """Write a new file at `path` and wait until the disk has it. False if `go_on` said so: the file is unfinished then.

    `go_on` is asked after every few megabytes with the bytes written. An unfinished file has no magic, so that it is
    never taken for a whole one. Raises OSError, also when there is a file of that name.
    """
    entries, data_start = _plan(identity, matrices)
    with path.open("x+b", buffering=0) as file:
        if not _write_matrices(file, matrices, data_start, go_on):
            return False
        samples = _samples(file.tell(), data_start, lambda start: _read(file, start))
        table = _table(identity, entries, samples)
        assert _aligned(_PREAMBLE.size + len(table), PAGE) == data_start
        preamble = _PREAMBLE.pack(_MAGIC, identity.layout, zlib.crc32(table), len(table))
        _sync(file)  # before the magic says that all is there
        file.seek(0)
        file.write((preamble + table).ljust(data_start))
        os.fsync(file.fileno())
    return True


def _write_matrices(
    file: BinaryIO, matrices: Sequence[PackedMatrix], data_start: int, go_on: Callable[[int], bool]
) -> bool:
    done = 0
    for piece in _pieces(matrices, data_start):
        written = 0
        while written < len(piece):
            written += file.write(piece[written:])
        done += len(piece)
        if done % _SYNC_BYTES == 0:
            _sync(file)
        if not go_on(done):
            return False
    return True


def _read(file: BinaryIO, start: int) -> bytes:
    """A page, or what is left of it before the end."""
    file.seek(start)
    return file.read(PAGE)


def _sync(file: BinaryIO) -> None:
    """Wait until the disk has the data; what systems without fdatasync offer does so too."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())


def _pieces(matrices: Sequence[PackedMatrix], data_start: int) -> Iterator[memoryview]:
    """The file from its first byte, the table left zero, in pieces of _WRITE_BYTES, all in one buffer."""
    whole = memoryview(bytearray(_WRITE_BYTES))
    buffer = np.frombuffer(whole, np.uint8)
    at = 0
    for blank, data in ((data_start, np.empty(0, np.uint8)), *((0, matrix.data) for matrix in matrices)):
        source = np.zeros(blank + -at % ALIGNMENT, np.uint8)
        for part in (source, data):
            taken = 0
            while taken < len(part):
                n = min(len(part) - taken, _WRITE_BYTES - at)
                buffer[at : at + n] = part[taken : taken + n]
                taken, at = taken + n, at + n
                if at == _WRITE_BYTES:
                    yield whole
                    at = 0
    yield whole[:at]


def _plan(identity: Identity, matrices: Sequence[PackedMatrix]) -> tuple[list[list[Any]], int]:
    """The table's rows, and the byte at which the matrices begin: behind a table as long as this one will be."""
    data_start = PAGE
    while True:
        entries, end = [], data_start
        for m in matrices:
            start = _aligned(end, ALIGNMENT)
            entries.append([m.name, m.expert, m.format, m.n_rows, m.n_cols, start, m.data.nbytes])
            end = start + m.data.nbytes
        length = len(_table(identity, entries, _samples(end, data_start, lambda start: b"")))
        if _aligned(_PREAMBLE.size + length, PAGE) == data_start:
            return entries, data_start
        data_start = _aligned(_PREAMBLE.size + length, PAGE)  # larger numbers may need a page more


def _table(identity: Identity, entries: list[list[Any]], samples: list[str]) -> bytes:
    table = {
        "source": identity.source,
        "rounding": identity.rounding,
        "samples": samples,
        "matrices": entries,
    }
    return json.dumps(table, separators=(",", ":")).encode()


def _samples(file_bytes: int, data_start: int, page: Callable[[int], bytes]) -> list[str]:
    """Checksums, eight digits each, of the matrices' first and last page and of one in each stride between."""
    between = range(_aligned(data_start + 1, SAMPLE_STRIDE), file_bytes, SAMPLE_STRIDE)
    starts = [data_start, *between, max(data_start, file_bytes - PAGE)]
    return [f"{zlib.crc32(page(start)):08x}" for start in starts]


def _is_row(row: Any) -> bool:
    """Whether a row of the table has its types and ranges."""
    if not isinstance(row, list) or [type(value) for value in row] != [str, int, str, int, int, int, int]:
        return False
    _, expert, fmt, n_rows, n_cols, start, n_bytes = row
    sizes = (n_rows, n_cols, start, n_bytes)
    return fmt in FORMATS and 0 <= expert < 1 << 32 and all(0 < size < 1 << 62 for size in sizes)


def _aligned(n_bytes: int, to: int) -> int:
    return -(-n_bytes // to) * to
