"""The model store: a directory in which a model is either whole and verified, or not there.

Owns the layout, names, locks and the one way in (staging, then a rename) and out (a rename, then deletion):

    ROOT/models/NAME/FILE..., manifest.json, freehold.json
                                    the model and what it is; manifest.json's mtime is when it was last used
    ROOT/staging/NAME.RANDOM/       a pull or a removal under way; what a killed process left is swept later
    ROOT/partial/NAME/              what an interrupted download has so far, for the next pull to go on from
    ROOT/locks/NAME.lock            held by whoever changes NAME

Everything lies on one file system, so that a rename is atomic. Knows nothing of catalogues, networks or file formats.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from freehold.errors import NotFoundError, RequestError, ResourceError, StoreError
from freehold.hub.catalog import nearest
from freehold.hub.lock import locked
from freehold.hub.manifest import MANIFEST_NAME, FileRecord, Record
from freehold.hub.stored import MANIFEST, WHOLE_DIRECTORY, Manifest, StoredModel, disk_bytes, read_model
from freehold.settings import load as load_settings

__all__ = ["DISK_MARGIN", "MANIFEST", "Manifest", "Store", "StoredModel", "check_name", "now"]

DISK_MARGIN = 64 << 20
"""Bytes left free beside what a pull needs, so that a pull never fills the user's disk to the brim."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")


class Store:
    """The store at `root` (default: FREEHOLD_HOME, or the user's data directory).

    Nothing is created before it is needed; reading needs no lock and no write permission. Every method raises
    StoreError when the disk or its content is at fault, RequestError for an impossible name.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = load_settings().home if root is None else Path(os.path.abspath(root))

    def path(self, name: str) -> Path:
        """The model file or directory of `name`, sizes checked. NotFoundError if not stored, StoreError if damaged."""
        model = self.find(name)
        if model is None:
            raise self._missing(name)
        if model.problem is not None:
            raise StoreError(f"{model.problem}; fetch it again with `freehold pull {model.name}`")
        return model.path

    def find(self, name: str) -> StoredModel | None:
        """The stored model called `name`, damaged or not, or None."""
        directory = self._part("models") / check_name(name)
        return read_model(directory) if os.path.lexists(directory) else None

    def models(self) -> list[StoredModel]:
        """Everything stored, by name; damaged ones carry their problem."""
        return [read_model(directory) for directory in self._directories()]

    def mark_used(self, name: str) -> None:
        """Note that `name` was used now. A store that cannot be written keeps the old date."""
        try:
            os.utime(self._part("models") / check_name(name) / MANIFEST)
        except OSError:
            return  # the date only sorts a list; a shared read-only store must still serve its models

    def remove(self, name: str) -> None:
        """Delete a model: first out of sight in one rename, then from the disk. NotFoundError when it is not stored."""
        if self.find(name) is None:
            raise self._missing(name)
        with self.lock(name), self.staging(name) as trash, self._guard(f"remove {name}"):
            os.rename(self._part("models") / check_name(name), trash / "removed")

    @contextmanager
    def lock(self, name: str, note: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the right to change `name`. When another process has it, say so through `note` once and wait."""
        lock_name = f"{check_name(name)}.lock"
        path = self._create("locks") / lock_name

        def on_wait() -> None:
            if note is not None:
                note(f"another process is changing {name} in the store; waiting for it")

        with self._locked(path, on_wait):
            yield

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """An empty directory on the store's file system, deleted at the end. The lock on `name` must be held."""
        parent = self._create("staging")
        with self._guard(f"write to {parent}"):
            directory = Path(tempfile.mkdtemp(prefix=f"{check_name(name)}.", dir=parent))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # what resists is swept by a later pull

    @contextmanager
    def partial(self, name: str) -> Iterator[Path]:
        """The directory in which downloads of `name` grow, with what an earlier one left. The lock must be held.

        Deleted at the end, but kept when the block raises or the process dies, so that the next pull goes on from it.
        """
        directory = self._create("partial") / check_name(name)
        with self._guard(f"write to {directory}"):
            if directory.is_symlink():
                directory.unlink()
            directory.mkdir(exist_ok=True)
        yield directory
        shutil.rmtree(directory, ignore_errors=True)

    def partials(self) -> dict[str, int]:
        """The names of interrupted downloads, and the bytes that each keeps."""
        with self._guard("read the store"):
            found = [entry for entry in _subdirectories(self._part("partial")) if _NAME.fullmatch(entry.name)]
        return {entry.name: disk_bytes(entry) for entry in found}

    def discard_partial(self, name: str) -> None:
        """Delete what an interrupted download of `name` left, if anything. Waits for the lock."""
        directory = self._part("partial") / check_name(name)
        if os.path.lexists(directory):
            with self.lock(name), self.staging(name) as trash, self._guard(f"remove {directory}"):
                os.rename(directory, trash / "partial")

    def commit(self, staged: Path, manifest: Manifest, files: Sequence[FileRecord] = ()) -> Path:
        """Make `staged`, a directory holding exactly the verified files of `manifest`, the model; returns its path.

        `files` are all files of the model; left out where `manifest.file` is the only one. The lock must be held and
        `staged` be a directory inside what staging() or partial() gave. A model of that name is replaced.
        """
        files = files or [FileRecord(manifest.file, manifest.n_bytes, manifest.sha256)]
        facts = (manifest.name, manifest.source, manifest.revision, manifest.licence, manifest.pulled_at)
        record = Record(*facts, tuple(files))
        target = self._create("models") / check_name(manifest.name)
        with self._guard(f"store {manifest.name}"):
            _write_synced(staged / MANIFEST, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
            _write_synced(staged / MANIFEST_NAME, record.to_json())
            _sync_directory(staged)
            if os.path.lexists(target):
                shutil.rmtree(staged.parent / "replaced", ignore_errors=True)  # of a pull that was killed here
                os.rename(target, staged.parent / "replaced")
            os.rename(staged, target)
            _sync_directory(target.parent)
        return target if manifest.file == WHOLE_DIRECTORY else target / manifest.file

    def sweep(self, held: str) -> None:
        """Delete what killed pulls and removals left behind: those of `held`, whose lock is ours, and of free locks."""
        for leftover in _subdirectories(self._create("staging")):
            name = leftover.name.rpartition(".")[0]
            if name == check_name(held):
                shutil.rmtree(leftover, ignore_errors=True)
            elif _NAME.fullmatch(name):
                with self._guard("lock the store"), locked(self._part("locks") / f"{name}.lock", wait=False) as free:
                    if free:
                        shutil.rmtree(leftover, ignore_errors=True)

    def require_space(self, n_bytes: int, what: str) -> None:
        """ResourceError unless the store's disk has room for `n_bytes` and a margin."""
        with self._guard("read the free disk space"):
            free = shutil.disk_usage(self._create("staging")).free
        if free < n_bytes + DISK_MARGIN:
            raise ResourceError(
                f"{what} needs {_megabytes(n_bytes + DISK_MARGIN)} of disk at {self.root}, but {_megabytes(free)} are "
                f"free; make room (`freehold ls`, `freehold rm`) or set FREEHOLD_HOME to a larger disk"
            )

    @contextmanager
    def _locked(self, path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        # The guard covers taking the lock only: an OSError of the caller's own work is not about the lock.
        with ExitStack() as stack:
            with self._guard(f"lock {path}"):
                stack.enter_context(locked(path, on_wait=on_wait))
            yield

    def _missing(self, name: str) -> NotFoundError:
        names = [entry.name for entry in self._directories()]
        return NotFoundError(
            f"model {name!r} is not in the store at {self.root}{nearest(name, names)}; "
            f"fetch it with `freehold pull {name}`, see what is there with `freehold ls`"
        )

    def _directories(self) -> list[Path]:
        with self._guard("read the store"):
            return [entry for entry in _subdirectories(self._part("models")) if _NAME.fullmatch(entry.name)]

    def _part(self, part: str) -> Path:
        path = self.root / part
        if os.path.islink(path):
            # Renames would cross file systems, and whoever can swap the link decides where we write and delete.
            raise StoreError(f"{path} is a symbolic link; expected a directory. To move the store, set FREEHOLD_HOME")
        return path

    def _create(self, part: str) -> Path:
        path = self._part(part)
        with self._guard(f"create {path}"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {action}: {error.strerror or error}. The model store at {self.root} must be a directory on a "
                f"local disk that you can write to; FREEHOLD_HOME sets another"
            ) from error


def check_name(name: str) -> str:
    """The name in lower case; RequestError unless it is safe as a directory name on every platform."""
    lowered = name.lower()
    if not _NAME.fullmatch(lowered):
        raise RequestError(
            f"{name[:100]!r} is no model name; expected up to 100 letters, digits, '.', '_' and '-', "
            f"with a letter or digit at both ends"
        )
    return lowered


def now() -> str:
    """The present time as manifests carry it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _subdirectories(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def _write_synced(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a pull that was killed while it committed left one
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # Windows has no handle on a directory that could be synced
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
