"""One model as one file, for machines that no network reaches: a tar, uncompressed, which streams and any tool reads.

Owns the order (freehold.json, then the files it lists), writing, and reading what may be hostile. Equal models make
equal archives. A reader takes plain files alone, under the names, sizes and digests that the record gives; of a
member's header nothing else counts. Knows neither the store nor the catalogue: it reads and writes where it is told.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, BinaryIO, NoReturn

from freehold.errors import ModelFileError, RequestError, StoreError
from freehold.hub.manifest import MANIFEST_NAME, MAX_BYTES, FileRecord, Record, parse_record

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MAX_EXTENSION = 1 << 16  # of a pax header, which says a long name or a large size
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def archive_bytes(record: Record) -> int:
    """The most bytes that the archive of a model takes."""
    overhead = 4 * _BLOCK + 1024  # a header, a pax header with its data, and padding
    return record.n_bytes + len(record.to_json()) + (len(record.files) + 1) * overhead + tarfile.RECORDSIZE


def write_archive(record: Record, sources: Mapping[str, Path], target: Path, progress: Progress | None = None) -> None:
    """Write the model to `target`, which must not exist. sources: where each file of the record lies.

    What is read is compared with the record. TARGET.incomplete is written first; interrupted, nothing is left, killed,
    only that. Raises RequestError when either exists, ModelFileError for a file that is not as the record says,
    StoreError when the disk is at fault.
    """
    work = target.with_name(f"{target.name}.incomplete")
    if os.path.lexists(target):
        raise RequestError(f"{target} exists already; name another file, or delete it first")
    try:
        stream = work.open("xb")
    except FileExistsError:
        raise RequestError(
            f"{work} exists: another export is writing there, or one was killed; delete it if none is"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write {work}: {error.strerror or error}") from error
    try:
        with stream:
            _write_members(stream, record, sources, progress)
            stream.flush()
            os.fsync(stream.fileno())
        if os.path.lexists(target):  # not os.link, which would never overwrite: memory sticks have no hard links
            raise RequestError(f"{target} appeared meanwhile; nothing was written there")
        os.rename(work, target)
    except BaseException as error:
        work.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StoreError(f"cannot write {target}: {error.strerror or error}; nothing was left there") from error
        raise


def read_record(stream: BinaryIO, where: str) -> Record:
    """The record that an archive begins with; the stream is then at the first file. Raises ModelFileError."""
    member = _next_member(stream, where)
    if member is None or member.name != MANIFEST_NAME:
        first = "it is empty" if member is None else f"its first member is {member.name[:80]!r}"
        _refuse(where, f"{first}; expected {MANIFEST_NAME}, which `freehold export` puts there")
    if member.size > MAX_BYTES:
        _refuse(where, f"its {MANIFEST_NAME} has {member.size} bytes, more than {MAX_BYTES}")
    data = _take(stream, member.size, where)
    _skip_padding(stream, member.size, where)
    return parse_record(data, f"{MANIFEST_NAME} in {where}")


def read_files(stream: BinaryIO, record: Record, directory: Path, where: str, progress: Progress | None = None) -> None:
    """Unpack the files that follow the record into `directory`, verified while they are read, and synced.

    Raises ModelFileError for anything that the record does not announce, OSError for the disk; what was unpacked
    until then stays, for the caller to delete with `directory`.
    """
    missing = {file.name: file for file in record.files}
    done = 0
    while (member := _next_member(stream, where)) is not None:
        file = missing.pop(member.name, None)
        if file is None:
            _refuse(where, f"it holds {member.name[:80]!r}, which its {MANIFEST_NAME} does not list, or twice")
        if member.size != file.size:
            _refuse(where, f"{file.name} has {member.size} bytes; its {MANIFEST_NAME} says {file.size}")
        target = directory.joinpath(*file.name.split("/"))  # which parse_record found safe
        target.parent.mkdir(parents=True, exist_ok=True)
        _unpack(stream, file, target, where, progress, done, record.n_bytes)
        done += file.size
    if missing:
        _refuse(where, f"it ends before {next(iter(missing))}; it was cut short: copy or export it again")


def file_record(path: Path, name: str, progress: Callable[[int], None] | None = None) -> FileRecord:
    """The record of the file at `path`. progress gets the bytes of each piece read. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if progress is not None:
                progress(len(chunk))
    return FileRecord(name, size, digest.hexdigest())


def _write_members(stream: BinaryIO, record: Record, sources: Mapping[str, Path], progress: Progress | None) -> None:
    content = record.to_json()
    stream.write(_header(MANIFEST_NAME, len(content)) + content + _padding(len(content)))
    done = 0
    for file in record.files:
        stream.write(_header(file.name, file.size))
        with _opened(sources[file.name]) as source:
            digest, size = hashlib.sha256(), 0
            while size <= file.size and (chunk := source.read(_CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                stream.write(chunk)
                if progress is not None:
                    progress(done + min(size, file.size), record.n_bytes)
        if size != file.size or digest.hexdigest() != file.sha256:
            raise ModelFileError(
                f"{sources[file.name]} is not what its record says: {size} bytes or more with SHA-256 "
                f"{digest.hexdigest()}, expected {file.size} and {file.sha256}; nothing was exported. "
                f"`freehold verify {record.name}` checks all of it"
            )
        stream.write(_padding(size))
        done += size
    stream.write(bytes(2 * _BLOCK))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}; nothing was exported") from error


def _header(name: str, size: int) -> bytes:
    """Of a plain file, with nothing of this machine or this moment in it; pax where plain fields are too small."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _next_member(stream: BinaryIO, where: str) -> tarfile.TarInfo | None:
    """The next plain file; None at the end of the archive. What is not a plain file is refused, by kind."""
    info = _read_header(stream, where)
    if info is None:
        return None
    extension: dict[str, str] = {}
    if info.type == tarfile.XHDTYPE:
        if not 0 <= info.size <= _MAX_EXTENSION:
            _refuse(where, "a pax header is too large")
        extension = _pax(_take(stream, info.size, where), where)
        _skip_padding(stream, info.size, where)
        info = _read_header(stream, where)
        if info is None:
            _refuse(where, "it ends after a pax header")
    if info.type not in _PLAIN:
        _refuse(where, f"{info.name[:80]!r} is {_kind(info)}; expected plain files only")
    info.name = extension.get("path", info.name)
    size = extension.get("size", str(info.size))
    if not (size.isascii() and size.isdigit() and len(size) < 19):
        _refuse(where, f"the size of {info.name[:80]!r} is {size[:40]!r}")
    info.size = int(size)
    return info


def _read_header(stream: BinaryIO, where: str) -> tarfile.TarInfo | None:
    block = stream.read(_BLOCK)
    if not any(block):
        return None
    if len(block) != _BLOCK:
        _refuse(where, "it was cut short: copy or export it again")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        _refuse(where, f"a member's header is damaged ({error})")


def _pax(data: bytes, where: str) -> dict[str, str]:
    """Records of "length key=value\\n"; only those that are known to matter, and no other, may be there."""
    found: dict[str, str] = {}
    rest = io.BytesIO(data)
    while digits := _until_space(rest):
        text = digits.decode("ascii", "replace")
        n = int(text) - len(digits) - 1 if text.isdigit() and len(text) < 7 else 0
        key, equals, value = rest.read(max(0, n)).rstrip(b"\n").partition(b"=")
        if not equals or key not in (b"path", b"size"):
            _refuse(where, f"a pax header says {key[:40]!r}; expected path or size")
        try:
            found[key.decode()] = value.decode("utf-8")
        except UnicodeDecodeError:
            _refuse(where, "a pax header is not UTF-8")
    return found


def _until_space(stream: io.BytesIO) -> bytes:
    digits = b""
    while len(digits) < 8 and (byte := stream.read(1)) not in (b" ", b""):
        digits += byte
    return digits


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "a directory"
    if info.issym() or info.islnk():
        return "a link"
    return "a device" if info.isdev() else f"of the kind {info.type!r}"


def _unpack(
    stream: BinaryIO, file: FileRecord, target: Path, where: str, progress: Progress | None, done: int, total: int
) -> None:
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as output:
        while size < file.size:
            chunk = stream.read(min(_CHUNK, file.size - size))
            if not chunk:
                _refuse(where, f"it ends inside of {file.name}; it was cut short: copy or export it again")
            digest.update(chunk)
            output.write(chunk)
            size += len(chunk)
            if progress is not None:
                progress(done + size, total)
        output.flush()
        os.fsync(output.fileno())
    if digest.hexdigest() != file.sha256:
        _refuse(where, f"{file.name} has SHA-256 {digest.hexdigest()}; its {MANIFEST_NAME} says {file.sha256}")
    _skip_padding(stream, file.size, where)


def _take(stream: BinaryIO, size: int, where: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        _refuse(where, "it was cut short")
    return data


def _skip_padding(stream: BinaryIO, size: int, where: str) -> None:
    _take(stream, -size % _BLOCK, where)


def _refuse(where: str, what: str) -> NoReturn:
    raise ModelFileError(f"{where} is no archive that can be imported: {what}. Nothing was stored")
