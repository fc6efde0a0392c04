"""What the store takes of the disk, and what of it nobody needs any more.

Owns the account of the store's folders, and the list of what may go: interrupted downloads, debris of killed processes,
packed weights of models that are gone, and models that were not used for long. Follows no link. What a process is
working on, or has loaded, is left alone.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold.errors import RequestError, StoreError
from freehold.hub.lock import locked
from freehold.hub.packed import elsewhere
from freehold.hub.store import Store, check_name
from freehold.hub.stored import StoredModel, disk_bytes
from freehold.hub.usage import users

Kind = Literal["download", "debris", "packed weights", "model"]

_DAY = 86_400


@dataclass(frozen=True)
class Disposable:
    """Something in the store that may go, and why. name: the model's that it belongs to, or its path elsewhere."""

    kind: Kind
    name: str
    path: Path
    n_bytes: int
    reason: str


@dataclass(frozen=True)
class PackedElsewhere:
    """Packed weights of a model outside of the store."""

    model: str
    n_bytes: int
    exists: bool


@dataclass(frozen=True)
class Account:
    """What the store takes of the disk, in bytes, by what it is for. free is None where the system does not say."""

    models: tuple[StoredModel, ...]
    packed: tuple[PackedElsewhere, ...]
    downloads: dict[str, int]
    debris: int
    other: int
    total: int
    free: int | None


def account(store: Store) -> Account:
    """Count every file below the store's root, and follow no link."""
    models = tuple(store.models())
    packed = tuple(
        PackedElsewhere(origin, disk_bytes(directory), os.path.lexists(origin))
        for directory, origin in elsewhere(store).items()
    )
    downloads = store.partials()
    debris = disk_bytes(store.root / "staging")
    total = disk_bytes(store.root)
    known = sum(model.n_bytes for model in models) + sum(one.n_bytes for one in packed) + sum(downloads.values())
    return Account(models, packed, downloads, debris, total - known - debris, total, _free(store.root))


def disposables(store: Store, older_than: float | None = None, now: float | None = None) -> list[Disposable]:
    """What may go, and models that were not used for `older_than` days. Deletes nothing."""
    found = [
        Disposable("download", name, store.root / "partial" / name, n_bytes, "an interrupted download")
        for name, n_bytes in store.partials().items()
        if _is_idle(store, name)
    ]
    for path in _entries(store.root / "staging"):
        name = path.name.rpartition(".")[0]
        if _is_name(name) and _is_idle(store, name):  # whatever else lies there is not ours
            found.append(Disposable("debris", name, path, disk_bytes(path), "left by a process that was killed"))
    for path, origin in sorted(elsewhere(store).items()):
        if not os.path.lexists(origin):
            found.append(Disposable("packed weights", origin, path, disk_bytes(path), "of a model that is gone"))
    if older_than is not None:
        now = time.time() if now is None else now
        for model in store.models():
            days = (now - model.last_used) / _DAY
            if days > older_than and not users(model.name, store):
                path = store.root / "models" / model.name
                reason = f"not used for {days:.0f} days"
                found.append(Disposable("model", model.name, path, model.n_bytes, reason))
    return found


def dispose(thing: Disposable, store: Store) -> None:
    """Delete it. Raises StoreError when that fails; what is gone already is no failure."""
    if thing.kind == "model":
        store.remove(thing.name)
    elif thing.kind == "download":
        store.discard_partial(thing.name)
    else:
        if thing.path.is_symlink():
            thing.path.unlink(missing_ok=True)
        shutil.rmtree(thing.path, ignore_errors=True)
        if os.path.lexists(thing.path):
            raise StoreError(f"cannot delete {thing.path}; delete it by hand")


def _is_name(text: str) -> bool:
    try:
        return check_name(text) == text
    except RequestError:
        return False


def _is_idle(store: Store, name: str) -> bool:
    """Whether nobody holds the lock on `name`."""
    path = store.root / "locks" / f"{name}.lock"
    try:
        if not path.exists():
            return True
        with locked(path, wait=False) as free:
            return free
    except OSError:
        return True  # without a folder of locks, or the right to write to it, nobody changes anything


def _entries(path: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path.iterdir())
    return []


def _free(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
