"""Models out of this machine and into another one's store, as archives.

Owns which files of a model go along, the disk space that takes at either end, and that an imported model is whole or
not there: it is unpacked where pulls are, verified, and moved in one rename. What the catalogue pins under a name can't
come in under it with other bytes. The archive's own form is `archive`'s.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from freehold.errors import ModelFileError, NotFoundError, RequestError, ResourceError, StoreError
from freehold.hub import Resolved
from freehold.hub.archive import Progress, archive_bytes, file_record, read_files, read_record, write_archive
from freehold.hub.catalog import CatalogEntry, find_entry
from freehold.hub.manifest import MAX_FILES, FileRecord, Record, name_problem
from freehold.hub.selection import shard_paths
from freehold.hub.store import DISK_MARGIN, Store, check_name, now
from freehold.hub.stored import WHOLE_DIRECTORY, Manifest, files_digest
from freehold.hub.verify import stored_files, stored_record

Stages = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""
Note = Callable[[str], None]

_WEIGHTS = frozenset({".safetensors", ".gguf"})
_TEXTS = frozenset({".json", ".jinja", ".txt", ".md", ".model"})
_LICENCES = ("license", "licence", "notice", "usage_policy")
_ORIGINAL = "original"  # where gpt-oss has its second layout


def export_model(
    resolved: Resolved, store: Store, target: Path, *, name: str | None = None, progress: Stages | None = None
) -> Record:
    """Write the model to the archive `target`, under its own name or `name`; returns what is in it.

    A model of the store goes as it was recorded, and is verified while it is read; so are files that it only links to.
    Of a directory of the user's, the weights, configs, tokenizer, templates and licences go along. Raises
    NotFoundError for a model that is not fetched, RequestError for names that no archive can have, and what
    `write_archive` raises.
    """
    known, sources = _contents(resolved, store)
    name = check_name(name or resolved.name)
    record = known or _hashed(name, resolved, sources, progress)
    record = Record(name, record.source, record.revision, record.licence, record.fetched, record.files)
    _require_space(target, archive_bytes(record), f"the archive of {name}")
    shown = None if progress is None else _stage(progress, f"exporting {name}")
    write_archive(record, sources, target, shown)
    return record


def import_model(
    archive: Path,
    store: Store,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Path:
    """Put the model of an archive into the store, under its own name or `name`; returns the path to open.

    Interrupted or killed at any moment, the store is as before. Raises NotFoundError without such a file,
    ModelFileError for an archive that is damaged or hostile, RequestError for a name that another model has, StoreError
    and ResourceError for the disk.
    """
    if not archive.is_file():
        raise NotFoundError(f"no file at {archive}; expected an archive that `freehold export` wrote")
    try:
        stream = archive.open("rb")
    except OSError as error:
        raise NotFoundError(f"{archive} cannot be read: {error.strerror or error}") from error
    with stream:
        record = read_record(stream, str(archive))
        if archive.stat().st_size < record.n_bytes:
            raise ModelFileError(f"{archive} was cut short: its files have {record.n_bytes} bytes; copy it again")
        manifest = _manifest(check_name(name or record.name), record)
        _check_pinned(manifest, record)
        with store.lock(manifest.name, note):
            present = _present(manifest, store)
            if present is None:
                return _unpack(stream, str(archive), record, manifest, store, progress)
    if note is not None:
        note(f"{manifest.name} is in the store already, the same files")
    return present


def _unpack(
    stream: BinaryIO, where: str, record: Record, manifest: Manifest, store: Store, progress: Progress | None
) -> Path:
    store.sweep(manifest.name)
    store.require_space(record.n_bytes, f"importing {manifest.name}")
    with store.staging(manifest.name) as staging:
        staged = staging / "model"
        try:
            staged.mkdir()
            read_files(stream, record, staged, where, progress)
        except OSError as error:
            raise StoreError(f"cannot import {where}: {error.strerror or error}; nothing was stored") from error
        return store.commit(staged, manifest, record.files)


def _contents(resolved: Resolved, store: Store) -> tuple[Record | None, dict[str, Path]]:
    """What is recorded of the files, if anything, and where they lie."""
    if resolved.path is None:
        raise NotFoundError(f"{resolved.name} is not in the store yet; fetch it with `freehold pull {resolved.name}`")
    model = store.find(resolved.name) if resolved.kind == "stored" else None
    if model is None:
        return None, _model_files(resolved.path)
    present = stored_files(model)
    record = stored_record(model)
    for file in record.files if record else ():
        if file.name not in present:
            raise StoreError(f"{model.name} in the store lacks {file.name}; `freehold pull {model.name}` fetches it")
    return record, present


def _model_files(path: Path) -> dict[str, Path]:
    """The files of a model of the user's, by their names in an archive. Links are followed."""
    if not path.is_dir():
        parts = shard_paths(path)
        if missing := [part.name for part in parts if not part.is_file()]:
            raise NotFoundError(f"{path.parent} lacks {len(missing)} parts of {path.name}: {', '.join(missing[:3])}")
        return {part.name: part for part in parts}
    folders = [path]
    if not any(entry.suffix in _WEIGHTS for entry in path.iterdir()):
        folders.append(path / _ORIGINAL)
    found = {}
    for folder in folders:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            is_text = entry.suffix in _TEXTS or entry.name.lower().startswith(_LICENCES)
            if entry.is_file() and not entry.name.startswith(".") and (is_text or entry.suffix in _WEIGHTS):
                found[entry.relative_to(path).as_posix()] = entry
    if not any(entry.suffix in _WEIGHTS for entry in found.values()):
        raise NotFoundError(f"{path} holds no model; expected *.safetensors files, or one .gguf file")
    return found


def _hashed(name: str, resolved: Resolved, sources: dict[str, Path], progress: Stages | None) -> Record:
    """A record of files that nothing is known of: each is read once for it."""
    for file_name in sources:
        if problem := name_problem(file_name):
            raise RequestError(f"the file {file_name[:80]!r} cannot go into an archive: {problem}; rename it first")
    if len(sources) > MAX_FILES:
        raise RequestError(f"{resolved.path} holds {len(sources)} files; an archive has up to {MAX_FILES}")
    done = 0

    def read(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(f"hashing {name}", done, total)

    try:
        total = sum(path.stat().st_size for path in sources.values())
        files = tuple(file_record(path, file_name, read) for file_name, path in sources.items())
    except OSError as error:
        raise ModelFileError(f"{error.filename} cannot be read: {error.strerror}; nothing was exported") from error
    licence = resolved.entry.licence if resolved.entry else ""
    return Record(name, "local files", "", licence, now(), files)


def _manifest(name: str, record: Record) -> Manifest:
    file, container = _what_to_open(record.files)
    return Manifest(
        name=name,
        file=file,
        format=container,
        n_bytes=record.n_bytes,
        sha256=files_digest(record.files),
        licence=record.licence,
        source=record.source,
        pulled_at=record.fetched or now(),
        revision=record.revision,
    )


def _what_to_open(files: Sequence[FileRecord]) -> tuple[str, str]:
    """The file, or "." for the directory, and the container. Of a GGUF file in parts, the first."""
    if any(file.name.lower().endswith(".safetensors") for file in files):
        return WHOLE_DIRECTORY, "safetensors"
    ggufs = sorted(file.name for file in files if file.name.lower().endswith(".gguf") and "/" not in file.name)
    if not ggufs:
        raise ModelFileError("the archive holds no weights: neither .safetensors nor .gguf files. Nothing was stored")
    return ggufs[0], "gguf"


def _check_pinned(manifest: Manifest, record: Record) -> None:
    """A name of the catalogue means the bytes that it pins."""
    entry = find_entry(manifest.name)
    if entry is not None and entry.name != manifest.name:
        raise RequestError(
            f"{manifest.name} is another name of {entry.name} in the catalogue; import it under a name of its own: "
            f"--as NAME"
        )
    if entry is None:
        return
    found = {file.name: file.sha256 for file in record.files}
    pinned = {name: digest for name, digest in entry.digests.items() if name in found}
    if isinstance(entry, CatalogEntry):
        pinned[entry.file] = entry.sha256
    for name, digest in pinned.items():
        if found.get(name) != digest:
            raise RequestError(
                f"the archive calls its model {manifest.name}, but it is not what the catalogue pins under this name "
                f"({name}, SHA-256 {digest}); import it under a name of its own: --as NAME"
            )


def _present(manifest: Manifest, store: Store) -> Path | None:
    """The stored model, if it is the same; RequestError if it is another."""
    model = store.find(manifest.name)
    if model is None or model.problem is not None:
        return None
    if model.manifest is not None and model.manifest.sha256 == manifest.sha256:
        return model.path
    raise RequestError(
        f"another model is called {manifest.name} in the store; remove it first (`freehold rm {manifest.name}`), or "
        f"import this one under another name: --as NAME"
    )


def _require_space(target: Path, n_bytes: int, what: str) -> None:
    parent = Path(os.path.abspath(target)).parent
    try:
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise StoreError(f"cannot write to {parent}: {error.strerror or error}") from error
    if free < n_bytes + DISK_MARGIN:
        raise ResourceError(
            f"{what} takes {n_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free at {parent}; name another disk"
        )


def _stage(progress: Stages, what: str) -> Progress:
    return lambda done, total: progress(what, done, total)
