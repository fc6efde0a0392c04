"""Where the packed weights of a model are kept, what they were made from, and whose turn it is to write them.

Owns the places: beside a model of the store, so that they go with it, and in a folder of the store's own for a model
elsewhere, in which `origin` names that model:

    ROOT/models/NAME/weights.packed, weights.rounding.json
    ROOT/packed/KEY/weights.packed, weights.rounding.json, origin      KEY is a digest of the model's path
    ROOT/locks/packed-KEY.lock                  held by the one process that writes

Knows nothing of what is inside. Whoever cannot write here goes without; nothing depends on these files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import StoreError
from freehold.hub.lock import locked
from freehold.hub.selection import shard_paths
from freehold.hub.store import Store

PACKED_NAME, COSTS_NAME = "weights.packed", "weights.rounding.json"
_ORIGIN = "origin"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.gguf", "config.json")

FREE_SHARE, FREE_BYTES = 0.1, 5 * 10**9
"""Of the disk, the part that stays free, or so many bytes where that is less: a file that saves seconds is not worth a
full disk."""


@dataclass(frozen=True)
class PackedPlace:
    """Where the packed weights of one model are kept."""

    file: Path
    model: Path
    in_store: bool
    lock: Path

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Yields whether the right to write `file` is ours; False while another process writes it. Raises OSError."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.lock, wait=False) as ours:
            if ours and not self.in_store:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                (self.file.parent / _ORIGIN).write_text(str(self.model), "utf-8")
            yield ours

    @property
    def costs(self) -> Path:
        """Where it is noted what roundings of these weights cost (rounding_report.py)."""
        return self.file.with_name(COSTS_NAME)

    def has_room(self, n_bytes: int) -> bool:
        """Whether the disk can take a file of `n_bytes` and keep enough free. Raises OSError."""
        disk = shutil.disk_usage(self.file.parent)
        return disk.free - n_bytes >= min(FREE_SHARE * disk.total, FREE_BYTES)

    def discard(self) -> None:
        """Delete what is at `file`, if we can: a file, a link (never what it leads to) or an empty directory."""
        with suppress(OSError):
            if self.file.is_dir() and not self.file.is_symlink():
                self.file.rmdir()
            else:
                self.file.unlink()


def packed_place(model: Path, store: Store) -> PackedPlace:
    """The place for the model at `model`, which need not exist. Raises StoreError for a link in the store's folders."""
    for folder in ("models", "packed", "locks"):
        if (store.root / folder).is_symlink():  # whoever can swap the link decides where we write and delete
            raise StoreError(f"{store.root / folder} is a symbolic link; expected a directory")
    try:
        entry = model.relative_to(store.root / "models").parts[0]
    except (ValueError, IndexError):  # not in the store
        key = hashlib.sha256(os.path.realpath(model).encode()).hexdigest()[:32]
        directory = store.root / "packed" / key
        return PackedPlace(directory / PACKED_NAME, model, False, store.root / "locks" / f"packed-{key}.lock")
    directory = store.root / "models" / entry
    return PackedPlace(directory / PACKED_NAME, model, True, store.root / "locks" / f"packed-{entry}.lock")


def packed_size(model: Path, store: Store) -> int | None:
    """Bytes of the model's packed file, which may be stale; None if there is none."""
    try:
        return packed_place(model, store).file.stat().st_size
    except (OSError, StoreError):
        return None


def fingerprint(model: Path, store: Store) -> str:
    """What packed weights were made from: names, sizes and modification times of the files at `model`, all its parts,
    and the digest that the store pins for them. Raises OSError, StoreError.
    """
    folders = (model, model / "original")  # the second is gpt-oss's
    found = [path for folder in folders for pattern in _WEIGHT_FILES for path in folder.glob(pattern)]
    facts = []
    for path in shard_paths(model) if model.is_file() else sorted(found):
        stat = path.stat()
        facts.append([path.relative_to(model.parent).as_posix(), stat.st_size, stat.st_mtime_ns])
    stored = store.find(model.parent.name) if model.parent.parent == store.root / "models" else None
    pinned = stored.manifest.sha256 if stored and stored.manifest else None
    return hashlib.sha256(json.dumps([facts, pinned]).encode()).hexdigest()


def elsewhere(store: Store) -> dict[Path, str]:
    """The directories that hold packed weights of models outside of the store, and the path of each model."""
    found = {}
    with suppress(OSError):
        for directory in (store.root / "packed").iterdir():
            with suppress(OSError, UnicodeDecodeError):
                found[directory] = (directory / _ORIGIN).read_text("utf-8")
    return found


def sweep(store: Store) -> None:
    """Delete the packed weights of models elsewhere that are there no more."""
    for directory, origin in elsewhere(store).items():
        if not os.path.lexists(origin) and not directory.is_symlink():
            shutil.rmtree(directory, ignore_errors=True)
