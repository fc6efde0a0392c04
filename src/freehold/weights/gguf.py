"""Reader of GGUF files, versions 2 and 3, little-endian.

Owns the check of everything the file claims before anything is allocated or mapped for it; whatever is wrong is a
ModelFileError that names the field and its byte offset. What is legal but not implemented is an UnsupportedError.
Knows the container only: what keys and tensor names mean is `gguf_tensors.py`'s business.

Source: the GGUF specification (docs/gguf.md of ggml). A file is
    "GGUF" | u32 version | u64 n_tensors | u64 n_keys
    n_keys x    (string key | u32 type | value)            a string is u64 length | UTF-8
    n_tensors x (string name | u32 n_dims | u64 dims, the contiguous one first | u32 type | u64 offset)
    padding to `general.alignment`, then the tensors' bytes; offsets count from here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import BY_GGML_TYPE, FORMATS, QTensor
from freehold.weights.mapping import MappedFile, TensorSpan
from freehold.weights.quote import quote

# Far above any real file, low enough that reading what they allow takes well under a second.
_MAX_HEADER_BYTES = 256 << 20  # metadata and tensor table together
_MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 15
_MAX_STRINGS = 1 << 21  # in all string arrays together
_MAX_KEY_BYTES = (1 << 16) - 1  # the specification's limit
_MAX_NAME_BYTES = 255  # the specification says 64
_MAX_DIMS = 4
_MIN_KEY_BYTES = 8 + 4 + 1  # an empty name, a type, a byte
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, a type, an offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBER_TYPES: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), _BOOL: np.dtype("<u1"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip

_NOT_IMPLEMENTED: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class GGUFFile:
    """An open GGUF file. Tensors are views of the map; `get` touches no page of them.

    metadata: strings are str, numbers int or float, booleans bool, arrays of strings tuples, other arrays read-only
    numpy arrays. names: in the order of their bytes.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises NotFoundError, ModelFileError or UnsupportedError; nothing stays open then."""
        self.path = Path(path)
        self._file = MappedFile(self.path)
        try:
            cursor = _Cursor(self._file)
            n_tensors, n_keys = _read_counts(cursor)
            self.metadata: Mapping[str, Any] = MappingProxyType(_read_metadata(cursor, n_keys))
            self._spans = _read_tensor_table(cursor, n_tensors, self.metadata)
        except BaseException:
            self._file.close()
            raise
        self.names: tuple[str, ...] = tuple(self._spans)
        self.n_bytes = sum(span.n_bytes for span in self._spans.values())

    def span(self, name: str) -> TensorSpan:
        """Type, shape (row-major) and place of a tensor; NotFoundError if the file has none of that name."""
        try:
            return self._spans[name]
        except KeyError:
            raise NotFoundError(f"{self.path} has no tensor {quote(name)}") from None

    def get(self, name: str) -> QTensor:
        """The tensor, as a view of the mapped file; NotFoundError if the file has none of that name."""
        span = self.span(name)
        return self._file.tensor(FORMATS[span.dtype], span)

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are no longer needed."""
        self._file.release(self.span(name))

    def close(self) -> None:
        """Unmap the file; tensors already taken stay valid."""
        self._file.close()


class _Cursor:
    """A position in the header, moved only by reads that were checked first.

    Errors name `owner`, the key or tensor being read, and `at`, the byte where its current field begins.
    """

    def __init__(self, file: MappedFile) -> None:
        self.bytes = file.bytes
        self.file_bytes = file.n_bytes
        self.end = min(file.n_bytes, _MAX_HEADER_BYTES)
        self.path = file.path
        self.pos = 0
        self.at = 0
        self.owner = ""

    def error(self, problem: str) -> str:
        owner = f"{quote(self.owner)}: " if self.owner else ""
        return f"{self.path}: {owner}{problem} (at byte {self.at})"

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(self.error(problem))

    def need(self, n_bytes: int, field: str) -> None:
        """Check that n_bytes follow the position, in the file and in what a header may take."""
        left = self.end - self.pos
        if n_bytes <= left:
            return
        if self.end < self.file_bytes:
            self.fail(f"the {field} takes {n_bytes} bytes; a whole header may take {_MAX_HEADER_BYTES:,}")
        self.fail(f"the {field} takes {n_bytes} bytes, but the file ends after {left}: it is truncated or damaged")

    def u32(self, field: str) -> int:
        self.at = self.pos
        self.need(4, field)
        value: int = _U32.unpack_from(self.bytes, self.pos)[0]
        self.pos += 4
        return value

    def u64(self, field: str) -> int:
        self.at = self.pos
        self.need(8, field)
        value: int = _U64.unpack_from(self.bytes, self.pos)[0]
        self.pos += 8
        return value

    def string(self, field: str, limit: int = _MAX_HEADER_BYTES) -> str:
        length = self.u64(field)
        if length > limit:
            self.fail(f"the {field} is {length} bytes long; expected at most {limit}")
        self.need(length, field)
        start, self.pos = self.pos, self.pos + length
        try:
            return self.bytes[start : self.pos].decode()
        except UnicodeDecodeError:
            self.fail(f"the {field} is not UTF-8")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Magic, version, and the checked numbers of tensors and keys."""
    cursor.need(4, "magic")
    magic = cursor.bytes[:4]
    if magic != b"GGUF":
        cursor.fail(f"the file begins with {magic!r}, not with b'GGUF': it is not a GGUF file")
    cursor.pos = 4
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(cursor.error("this GGUF file is big-endian; get the little-endian one"))
    if version not in (2, 3):
        raise UnsupportedError(cursor.error(f"the GGUF version is {version}; Freehold reads versions 2 and 3"))
    n_tensors = cursor.u64("tensor count")
    if n_tensors > MAX_TENSORS:
        cursor.fail(f"the tensor count is {n_tensors}; expected at most {MAX_TENSORS}")
    n_keys = cursor.u64("metadata count")
    if n_keys > _MAX_KEYS:
        cursor.fail(f"the metadata count is {n_keys}; expected at most {_MAX_KEYS}")
    cursor.need(n_keys * _MIN_KEY_BYTES + n_tensors * _MIN_TENSOR_BYTES, f"table of {n_keys} keys, {n_tensors} tensors")
    return n_tensors, n_keys


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    strings_left = _MAX_STRINGS
    for index in range(n_keys):
        start, cursor.owner = cursor.pos, f"metadata key {index}"
        key = cursor.owner = cursor.string("name", _MAX_KEY_BYTES)
        if key in metadata:
            cursor.at = start
            cursor.fail("the key occurs twice")
        kind = cursor.u32("value type")
        if kind == _STRING:
            metadata[key] = cursor.string("value")
        elif kind != _ARRAY:
            metadata[key] = _read_numbers(cursor, kind, 1)[0].item()
        else:
            value = metadata[key] = _read_array(cursor, strings_left)
            strings_left -= len(value) if isinstance(value, tuple) else 0
    return metadata


def _read_array(cursor: _Cursor, strings_left: int) -> Any:
    kind = cursor.u32("element type")
    if kind == _ARRAY:
        raise UnsupportedError(cursor.error("the value is an array of arrays; Freehold reads flat arrays"))
    if kind != _STRING and kind not in _NUMBER_TYPES:
        cursor.fail(f"the element type is {kind}; expected 0 to 12")
    count = cursor.u64("array length")
    if kind != _STRING:
        return _read_numbers(cursor, kind, count)
    if count > strings_left:
        cursor.fail(f"the array holds {count} strings; expected at most {_MAX_STRINGS} in all arrays together")
    cursor.need(count * 8, f"array of {count} strings")
    return _read_strings(cursor, count)


def _read_numbers(cursor: _Cursor, kind: int, count: int) -> np.ndarray[Any, np.dtype[Any]]:
    """A read-only array; a boolean is a byte of 0 or 1."""
    dtype = _NUMBER_TYPES.get(kind)
    if dtype is None:
        cursor.fail(f"the value type is {kind}; expected 0 to 12")
    cursor.at = cursor.pos
    cursor.need(count * dtype.itemsize, "value")
    stop = cursor.pos + count * dtype.itemsize
    values = np.frombuffer(cursor.bytes[cursor.pos : stop], dtype)  # a copy, which outlives the map
    if kind == _BOOL:
        if count and values.max() > 1:
            cursor.fail(f"a boolean is {values.max()}; expected 0 or 1")
        values = values.view(np.bool_)
    cursor.pos = stop
    return values


def _read_strings(cursor: _Cursor, count: int) -> tuple[str, ...]:
    """The hot loop: a vocabulary and its merges are 100,000 to 1,000,000 strings."""
    data, end, pos = cursor.bytes, cursor.end, cursor.pos
    unpack = _U64.unpack_from
    strings: list[str] = []
    append = strings.append
    start = stop = pos
    try:
        for _ in range(count):
            start = stop
            stop = start + 8 + unpack(data, start)[0]
            if stop > end:
                break
            append(data[start + 8 : stop].decode())
    except struct.error:  # not even the length lies in the file
        stop = start + 8
    except UnicodeDecodeError:
        cursor.at = start
        cursor.fail(f"string {len(strings)} is not UTF-8")
    cursor.at = cursor.pos = start
    cursor.need(stop - start, f"string {len(strings)}")
    cursor.pos = stop
    return tuple(strings)


def _read_tensor_table(cursor: _Cursor, n_tensors: int, metadata: Mapping[str, Any]) -> dict[str, TensorSpan]:
    alignment = metadata.get("general.alignment", 32)
    cursor.owner, cursor.at = "general.alignment", cursor.pos
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(f"the value is {quote(alignment)}; expected a power of two")
    spans: dict[str, TensorSpan] = {}
    for index in range(n_tensors):
        start, cursor.owner = cursor.pos, f"tensor {index}"
        name = cursor.owner = cursor.string("name", _MAX_NAME_BYTES)
        if name in spans:
            cursor.at = start
            cursor.fail("the tensor name occurs twice")
        spans[name] = _read_span(cursor, alignment)
    return _place_tensors(cursor, spans, alignment)


def _read_span(cursor: _Cursor, alignment: int) -> TensorSpan:
    """A tensor's entry after its name. `start` still counts from the end of the header, which is not known yet."""
    n_dims = cursor.u32("number of dimensions")
    if not 1 <= n_dims <= _MAX_DIMS:
        cursor.fail(f"the number of dimensions is {n_dims}; expected 1 to {_MAX_DIMS}")
    shape = tuple(cursor.u64("dimension") for _ in range(n_dims))[::-1]
    if 0 in shape or math.prod(shape) >= 1 << 63:
        cursor.fail(f"the shape is {shape}; expected dimensions above 0 and a product below 2^63")
    kind = cursor.u32("tensor type")
    fmt = BY_GGML_TYPE.get(kind)
    if fmt is None:
        if kind not in _NOT_IMPLEMENTED:
            cursor.fail(f"the tensor type {kind} is unknown")
        readable = ", ".join(FORMATS)
        raise UnsupportedError(cursor.error(f"the type is {_NOT_IMPLEMENTED[kind]}; Freehold reads {readable}"))
    if shape[-1] % fmt.block:
        cursor.fail(f"the rows have {shape[-1]} numbers; {fmt.name} needs a multiple of {fmt.block}")
    offset = cursor.u64("offset")
    if offset % alignment:
        cursor.fail(f"the offset is {offset}; expected a multiple of {alignment}")
    return TensorSpan(fmt.name, shape, offset, math.prod(shape[:-1]) * fmt.row_bytes(shape[-1]))


def _place_tensors(cursor: _Cursor, spans: Mapping[str, TensorSpan], alignment: int) -> dict[str, TensorSpan]:
    """Make the offsets absolute; check that the tensors lie inside the file and apart. In the order of their bytes."""
    end = data_start = -(-cursor.pos // alignment) * alignment
    placed: dict[str, TensorSpan] = {}
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        span = replace(span, start=data_start + span.start)
        cursor.owner, cursor.at = name, span.start
        if span.start < end:
            cursor.fail(f"the tensor begins inside {quote(next(reversed(placed)))}, which ends at byte {end}")
        if span.stop > cursor.file_bytes:
            cursor.fail(f"the tensor ends at byte {span.stop}, the file at {cursor.file_bytes}: it is truncated")
        placed[name], end = span, span.stop
    return placed
