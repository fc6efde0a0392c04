"""Reader of safetensors files, and of checkpoints sharded over several of them.

Owns the check of the header against the file: every byte after the header belongs to exactly one tensor. Whatever is
wrong is a ModelFileError. Knows the container only, not what the tensors are for.

Source: the safetensors format description (Hugging Face). A file is u64 header length | JSON header | tensors' bytes;
the header maps a name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from the end of the header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import BY_SAFETENSORS_DTYPE, QTensor, UInt8Array
from freehold.weights.mapping import MappedFile, TensorSpan
from freehold.weights.quote import quote
from freehold.weights.strict_json import parse_object, read_object

INDEX_NAME = "model.safetensors.index.json"

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
_MAX_INDEX_BYTES = 64 << 20
_MAX_DIMS = 8
_DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_NUMBERED_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class SafetensorsFile:
    """An open safetensors file. Tensors are views of the map; `get` touches no page of them.

    names: in the order of their bytes, which is the order to read them in. metadata: the file's own string pairs.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises NotFoundError or ModelFileError; nothing stays open then."""
        self.path = Path(path)
        self._file = MappedFile(self.path)
        try:
            header, data_start = _read_header(self._file)
            metadata = _check_metadata(self.path, header.pop("__metadata__", {}))
            self.metadata: Mapping[str, str] = MappingProxyType(metadata)
            spans = {name: _check_entry(self.path, name, entry, data_start) for name, entry in header.items()}
            self._spans = dict(sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)))
            _check_coverage(self.path, self._spans, data_start, self._file.n_bytes)
        except BaseException:
            self._file.close()
            raise
        self.names: tuple[str, ...] = tuple(self._spans)
        self.n_bytes = self._file.n_bytes - data_start

    def span(self, name: str) -> TensorSpan:
        """Type, shape and place of a tensor; NotFoundError if the file has none of that name."""
        try:
            return self._spans[name]
        except KeyError:
            raise NotFoundError(f"{self.path} has no tensor {name!r}") from None

    def get(self, name: str) -> QTensor:
        """The tensor, as a view of the mapped file. Raises NotFoundError, or UnsupportedError naming its type."""
        span = self.span(name)
        fmt = BY_SAFETENSORS_DTYPE.get(span.dtype)
        if fmt is None:
            readable = ", ".join(BY_SAFETENSORS_DTYPE)
            raise UnsupportedError(
                f"{self.path}: {name!r} is stored as {span.dtype}, which Freehold does not read; it reads {readable}"
            )
        return self._file.tensor(fmt, span)

    def raw(self, name: str) -> UInt8Array:
        """The tensor's bytes [n_bytes], whatever its type. Raises NotFoundError."""
        span = self.span(name)
        return self._file.array(span.start, span.n_bytes)

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are no longer needed."""
        self._file.release(self.span(name))

    def close(self) -> None:
        """Unmap the file; tensors already taken stay valid."""
        self._file.close()


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The parsed header and the byte at which the tensors' data begins."""
    if file.n_bytes < 8:
        raise ModelFileError(
            f"{file.path} has {file.n_bytes} bytes; a safetensors file has at least 8: it is truncated"
        )
    length = int.from_bytes(file.bytes[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{file.path} claims a header of {length} bytes; expected at most {_MAX_HEADER_BYTES:,}: "
            "it is not safetensors, or damaged"
        )
    if 8 + length > file.n_bytes:
        raise ModelFileError(
            f"{file.path} claims a header of {length} bytes, but only {file.n_bytes - 8} follow: "
            "it is truncated or damaged"
        )
    return parse_object(file.bytes[8 : 8 + length], f"the header of {file.path}"), 8 + length


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"{path}: __metadata__ is not an object of strings")
    return metadata


def _check_entry(path: Path, name: str, entry: Any, data_start: int) -> TensorSpan:
    """One header entry, checked in itself: types, ranges, and shape against byte count."""

    def fail(what: str) -> ModelFileError:
        return ModelFileError(f"{path}: tensor {quote(name)} {what}")

    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise fail("is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise fail(f"has the unknown dtype {quote(dtype)}")
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMS:
        raise fail(f"has a shape that is not a list of at most {_MAX_DIMS} whole numbers from 0 to 2^63 - 1")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("has data_offsets that are not [begin, end] with 0 <= begin <= end")
    begin, end = offsets
    n_bits = math.prod(shape) * bits
    if n_bits != (end - begin) * 8:
        raise fail(f"has the shape {shape} of {dtype}, which is {n_bits} bits, but data_offsets of {end - begin} bytes")
    return TensorSpan(dtype, tuple(shape), data_start + begin, end - begin)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_coverage(path: Path, spans: Mapping[str, TensorSpan], data_start: int, file_bytes: int) -> None:
    """Tensors, in the order of their bytes, follow each other without overlap or gap up to the end of the file."""
    previous, end = "the header", data_start
    for name, span in spans.items():
        if span.start < end:
            raise ModelFileError(f"{path}: {quote(name)} begins at {span.start}, inside {quote(previous)}, up to {end}")
        if span.start > end:
            raise ModelFileError(f"{path}: bytes {end} to {span.start}, before {quote(name)}, belong to no tensor")
        previous, end = name, span.stop
    if end > file_bytes:
        raise ModelFileError(f"{path} ends at byte {file_bytes}, its last tensor at {end}: it is truncated")
    if end < file_bytes:
        raise ModelFileError(f"{path}: bytes {end} to {file_bytes}, after the last tensor, belong to no tensor")


class SafetensorsShards:
    """The safetensors files of one directory as one set of tensors.

    With an index the index decides which file holds which tensor, and tensors it does not list are not part of the
    checkpoint. Without one, the directory holds `model.safetensors`, a single *.safetensors file, or a whole series of
    them, numbered `-00001-of-00007` and so on.
    """

    def __init__(self, directory: Path) -> None:
        """Raises NotFoundError (no weights, missing shards or tensors) or ModelFileError."""
        self.directory = directory
        index = directory / INDEX_NAME
        shard_of = _read_index(index) if index.exists() else None
        paths = {directory / shard for shard in shard_of.values()} if shard_of is not None else _only_files(directory)
        what = "shards its index names" if shard_of is not None else "shards of its numbered series"
        _refuse_missing(directory, what, sorted(path.name for path in paths if not path.exists()), len(paths))
        self._files: dict[str, SafetensorsFile] = {}
        try:
            for path in sorted(paths):
                self._files[path.name] = SafetensorsFile(path)
            self._file_of = self._locate(shard_of)
        except BaseException:
            self.close()
            raise
        self.names: tuple[str, ...] = tuple(self._file_of)
        self.n_bytes = sum(file.span(name).n_bytes for name, file in self._file_of.items())

    def _locate(self, shard_of: Mapping[str, str] | None) -> dict[str, SafetensorsFile]:
        """The file of each tensor, in the order of files and their bytes."""
        if shard_of is None:
            file_of: dict[str, SafetensorsFile] = {}
            for file in self._files.values():
                for name in file.names:
                    if name in file_of:
                        raise ModelFileError(f"{file.path} holds the tensor {quote(name)}, as another file does")
                    file_of[name] = file
            return file_of
        held = {shard: set(file.names) for shard, file in self._files.items()}
        missing = [name for name, shard in shard_of.items() if name not in held[shard]]
        _refuse_missing(self.directory, "tensors its index names", missing, len(shard_of))
        return {name: file for shard, file in self._files.items() for name in file.names if shard_of.get(name) == shard}

    def span(self, name: str) -> TensorSpan:
        """Type, shape and place (in its own file) of a tensor; NotFoundError if there is none of that name."""
        return self._file(name).span(name)

    def get(self, name: str) -> QTensor:
        """The tensor, as a view of its mapped file. Raises NotFoundError, or UnsupportedError naming its type."""
        return self._file(name).get(name)

    def raw(self, name: str) -> UInt8Array:
        """The tensor's bytes [n_bytes], whatever its type. Raises NotFoundError."""
        return self._file(name).raw(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self.span(name).shape

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are no longer needed."""
        self._file(name).release(name)

    def close(self) -> None:
        """Unmap all files; tensors already taken stay valid."""
        for file in self._files.values():
            file.close()

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._file_of[name]
        except KeyError:
            raise NotFoundError(f"{self.directory} has no tensor {name!r}") from None


def _only_files(directory: Path) -> set[Path]:
    """The files of a directory without an index."""
    usual = directory / "model.safetensors"
    if usual.exists():
        return {usual}
    found = sorted(directory.glob("*.safetensors"))
    match = _NUMBERED_NAME.fullmatch(found[0].name) if found else None
    if match:
        stem, count = match["stem"], match["count"]
        series = {directory / f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)}
        if series.issuperset(found):
            return series
    elif len(found) == 1:
        return set(found)
    names = ", ".join(path.name for path in found[:5])
    raise NotFoundError(
        f"{directory} has {len(found)} safetensors files ({names}) but no {INDEX_NAME} that says how they belong "
        "together; fetch the index as well"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard file name. A shard is a plain name, so that an index cannot point outside its directory."""
    weight_map = read_object(path, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path} has no weight_map object that names the file of each tensor")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise ModelFileError(
                f"{path} places {quote(name)} in {quote(shard)}; expected the plain name of a .safetensors file"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and len(name) < 256 and not any(c in "/\\:" or ord(c) < 32 for c in name)


def _refuse_missing(directory: Path, what: str, missing: Iterable[str], total: int) -> None:
    names = list(missing)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise NotFoundError(
            f"{directory}: {len(names)} of the {total} {what} are missing: "
            f"{', '.join(map(quote, names[:5]))}{more}; the download is incomplete, so fetch it again"
        )
