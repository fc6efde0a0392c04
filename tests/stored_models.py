"""Models of a few bytes in a store of the test's own, and archives of them, whole and hostile."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from freehold.hub.manifest import MANIFEST_NAME, FileRecord, Record
from freehold.hub.store import Manifest, Store
from freehold.hub.stored import files_digest

GGUF = {"m.gguf": b"GGUF weights"}
SAFETENSORS = {"config.json": b"{}", "model.safetensors": b"weights" * 500, "tokenizer.json": b"{ }"}


def records(files: Mapping[str, bytes]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())


def record_of(name: str, files: Mapping[str, bytes]) -> Record:
    return Record(name, "test", "main", "MIT", "2026-01-01T00:00:00Z", records(files))


def put_model(
    store: Store, name: str, files: Mapping[str, bytes] = GGUF, links: Mapping[str, Path] | None = None
) -> Path:
    """Store a model as a pull does; returns what is opened. links: files that lie elsewhere."""
    found = records(files)
    ggufs = [file_name for file_name in files if file_name.endswith(".gguf")]
    main, container = (ggufs[0], "gguf") if ggufs else (".", "safetensors")
    size = sum(file.size for file in found)
    places = {file_name: str(path) for file_name, path in (links or {}).items()}
    facts = (name, main, container, size, files_digest(found), "MIT", "test", "2026-01-01T00:00:00Z", "main", places)
    with store.lock(name), store.staging(name) as staging:
        staged = staging / "model"
        staged.mkdir()
        for file_name, data in files.items():
            path = staged / file_name
            path.parent.mkdir(exist_ok=True)
            if file_name in places:
                path.symlink_to(places[file_name])
            else:
                path.write_bytes(data)
        return store.commit(staged, Manifest(*facts), found)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One member of a tar as bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


def archive(record: bytes | Record, members: Iterable[bytes]) -> bytes:
    """An archive of our form around any members."""
    content = record if isinstance(record, bytes) else record.to_json()
    return b"".join([member(MANIFEST_NAME, content), *members, bytes(1024)])


def archive_of(record: Record, files: Mapping[str, bytes]) -> bytes:
    return archive(record, [member(name, data) for name, data in files.items()])


def tar_names(data: bytes) -> list[str]:
    """What a tar of another maker sees in it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()
