"""One directory of the store: what is in it, and whether it is whole.

Owns manifest.json, which says what to open, and the check of every file against it and freehold.json: there, of the
size it had, a regular file, or the very link that was made. Contents are not hashed here. Changes nothing on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from freehold.errors import ModelFileError, StoreError
from freehold.hub.manifest import MANIFEST_NAME, MAX_BYTES, FileRecord, Record, parse_record

MANIFEST = "manifest.json"
WHOLE_DIRECTORY = "."
"""The `file` of a model that is opened as a directory."""

_TEXTS = ("name", "file", "format", "sha256", "licence", "source", "pulled_at")
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a stored model is and where it came from.

    file is what is opened: a file's name, or "." for the directory. n_bytes and sha256 are those of the model file; of
    a model of several files, all bytes and `files_digest`. pulled_at is UTC in ISO 8601. links: of the files that are
    symbolic links out of the store, where they lead.
    """

    name: str
    file: str
    format: str
    n_bytes: int
    sha256: str
    licence: str
    source: str
    pulled_at: str
    revision: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredModel:
    """One directory of the store. problem says what is wrong with it; then path must not be loaded.

    path is the model's file or directory, n_bytes what the directory holds on disk, last_used in seconds since the
    epoch. record lists the files; models that an early Freehold pulled have none. source is known of a damaged one too,
    where its manifest can be read.
    """

    name: str
    path: Path
    n_bytes: int
    format: str
    last_used: float
    manifest: Manifest | None = None
    problem: str | None = None
    record: Record | None = None
    source: str = ""


def files_digest(files: Sequence[FileRecord]) -> str:
    """One SHA-256 for a model: of its file, or of the names, sizes and digests of its files."""
    if len(files) == 1:
        return files[0].sha256
    facts = sorted([file.name, file.size, file.sha256] for file in files)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_model(directory: Path) -> StoredModel:
    """Never raises for what the directory holds: damage is reported in the result."""
    source = ""
    try:
        if directory.is_symlink() or not directory.is_dir():
            raise StoreError(f"{directory} is not a plain directory")
        manifest = _read_manifest(directory)
        source = manifest.source
        record = _read_record(directory)
        if record is None and manifest.file == WHOLE_DIRECTORY:
            raise StoreError(f"{directory / MANIFEST_NAME} is missing")
        files = {file.name: file.size for file in record.files} if record else {}
        if manifest.file != WHOLE_DIRECTORY and len(files) <= 1:
            files = {manifest.file: manifest.n_bytes}
        for name, n_bytes in files.items():
            _check_file(directory / name, n_bytes, manifest.links.get(name))
    except StoreError as error:
        n_bytes, used = disk_bytes(directory), _mtime(directory)
        return StoredModel(directory.name, directory, n_bytes, "unknown", used, problem=str(error), source=source)
    used = _mtime(directory / MANIFEST)
    path = directory if manifest.file == WHOLE_DIRECTORY else directory / manifest.file
    n_bytes = disk_bytes(directory)
    return StoredModel(
        directory.name, path, n_bytes, manifest.format, used, manifest=manifest, record=record, source=source
    )


def disk_bytes(directory: Path) -> int:
    """Bytes of the files below `directory`; a link counts as itself, not as what it leads to."""
    n_bytes = 0
    for top, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # another process may be removing it
                n_bytes += os.lstat(os.path.join(top, name)).st_size
    return n_bytes


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_LIMIT))
        texts = {name: values[name] for name in _TEXTS}
        texts["revision"] = values.get("revision", "")
        n_bytes, links = values["n_bytes"], values.get("links", {})
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(links, dict) or not all(isinstance(text, str) for text in (*texts.values(), *links.values())):
        raise StoreError(f"{path} is damaged (a value has the wrong type)")
    if type(n_bytes) is not int:
        raise StoreError(f"{path} is damaged (a value has the wrong type)")
    manifest = Manifest(n_bytes=n_bytes, links=links, **texts)
    plain = manifest.file == WHOLE_DIRECTORY or Path(manifest.file).name == manifest.file
    if manifest.name != directory.name or not plain or "\\" in manifest.file:
        raise StoreError(f"{path} is damaged (it names model {manifest.name!r} and file {manifest.file!r})")
    return manifest


def _read_record(directory: Path) -> Record | None:
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            return parse_record(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ModelFileError) as error:
        raise StoreError(f"{path} is damaged ({error})") from error


def _check_file(path: Path, n_bytes: int, link: str | None) -> None:
    try:
        found = path.lstat()
        if link is not None and stat.S_ISLNK(found.st_mode) and os.readlink(path) == link:
            found = path.stat()  # our own link, to a file of the user's that the store was told to use
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is not a regular file")
    if found.st_size != n_bytes:
        raise StoreError(f"{path} has {found.st_size} bytes instead of {n_bytes}")


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
