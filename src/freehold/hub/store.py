"""The model store: a directory in which a model is either whole and verified, or not there.

Owns the layout, names, locks and the one way in (staging, then a rename) and out (a rename, then deletion):

    ROOT/models/NAME/FILE, manifest.json    the model and what it is; the manifest's mtime is when it was last used
    ROOT/staging/NAME.RANDOM/               a pull or a removal under way; what a killed process left is swept later
    ROOT/locks/NAME.lock                    held by whoever changes NAME

Everything lies on one file system, so that a rename is atomic. Knows nothing of catalogues, networks or file formats.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from freehold.errors import NotFoundError, RequestError, ResourceError, StoreError
from freehold.hub.catalog import nearest
from freehold.hub.lock import locked
from freehold.settings import load as load_settings

MANIFEST = "manifest.json"
DISK_MARGIN = 64 << 20
"""Bytes left free beside what a pull needs, so that a pull never fills the user's disk to the brim."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_MANIFEST_LIMIT = 1 << 16


@dataclass(frozen=True)
class Manifest:
    """What a stored model is and where it came from.

    n_bytes and sha256 are those of the model file; pulled_at is UTC in ISO 8601.
    """

    name: str
    file: str
    format: str
    n_bytes: int
    sha256: str
    licence: str
    source: str
    pulled_at: str


@dataclass(frozen=True)
class StoredModel:
    """One directory of the store. problem says what is wrong with it; then path must not be loaded.

    path is the model file, n_bytes what the directory holds on disk, last_used in seconds since the epoch.
    """

    name: str
    path: Path
    n_bytes: int
    format: str
    last_used: float
    manifest: Manifest | None = None
    problem: str | None = None


class Store:
    """The store at `root` (default: FREEHOLD_HOME, or the user's data directory).

    Nothing is created before it is needed; reading needs no lock and no write permission. Every method raises
    StoreError when the disk or its content is at fault, RequestError for an impossible name.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = load_settings().home if root is None else Path(os.path.abspath(root))

    def path(self, name: str) -> Path:
        """The model file of `name`, its size checked. NotFoundError when it is not stored, StoreError when damaged."""
        model = self.find(name)
        if model is None:
            raise self._missing(name)
        if model.problem is not None:
            raise StoreError(f"{model.problem}; fetch it again with `freehold pull {model.name}`")
        return model.path

    def find(self, name: str) -> StoredModel | None:
        """The stored model called `name`, damaged or not, or None."""
        directory = self._part("models") / check_name(name)
        return _read_model(directory) if os.path.lexists(directory) else None

    def models(self) -> list[StoredModel]:
        """Everything stored, by name; damaged ones carry their problem."""
        return [_read_model(directory) for directory in self._directories()]

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

    def commit(self, staged: Path, manifest: Manifest) -> Path:
        """Make `staged`, a directory holding exactly the verified file of `manifest`, the model; returns its path.

        The lock must be held and `staged` be a directory inside what staging() gave. A model of that name is replaced.
        """
        target = self._create("models") / check_name(manifest.name)
        with self._guard(f"store {manifest.name}"):
            _write_synced(staged / MANIFEST, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
            _sync_directory(staged)
            if os.path.lexists(target):
                os.rename(target, staged.parent / "replaced")
            os.rename(staged, target)
            _sync_directory(target.parent)
        return target / manifest.file

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


def _read_model(directory: Path) -> StoredModel:
    """Never raises for what the directory holds: damage is reported in the result."""
    try:
        if directory.is_symlink() or not directory.is_dir():
            raise StoreError(f"{directory} is not a plain directory")
        manifest = _read_manifest(directory)
        path = directory / manifest.file
        _check_file(path, manifest.n_bytes)
    except StoreError as error:
        n_bytes, used = _disk_bytes(directory), _mtime(directory)
        return StoredModel(directory.name, directory, n_bytes, "unknown", used, problem=str(error))
    used = _mtime(directory / MANIFEST)
    return StoredModel(directory.name, path, _disk_bytes(directory), manifest.format, used, manifest)


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MANIFEST_LIMIT))
        manifest = Manifest(**{field.name: values[field.name] for field in fields(Manifest)})
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    texts = (getattr(manifest, field.name) for field in fields(Manifest) if field.name != "n_bytes")
    if not all(isinstance(text, str) for text in texts) or type(manifest.n_bytes) is not int:
        raise StoreError(f"{path} is damaged (a value has the wrong type)")
    if manifest.name != directory.name or Path(manifest.file).name != manifest.file or "\\" in manifest.file:
        raise StoreError(f"{path} is damaged (it names model {manifest.name!r} and file {manifest.file!r})")
    return manifest


def _check_file(path: Path, n_bytes: int) -> None:
    try:
        found = path.lstat()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is not a regular file")
    if found.st_size != n_bytes:
        raise StoreError(f"{path} has {found.st_size} bytes instead of {n_bytes}")


def _subdirectories(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def _disk_bytes(directory: Path) -> int:
    n_bytes = 0
    for top, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # another process may be removing it
                n_bytes += os.lstat(os.path.join(top, name)).st_size
    return n_bytes


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _write_synced(path: Path, content: bytes) -> None:
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
