"""What a stored model should consist of, and whether it does: its files read again and compared, one by one.

Owns where the expected digests come from: freehold.json beside the model, the manifest of an older pull, or what the
catalogue pins. Reads only; a link is read through, as loading does. Knows no format of model files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold.errors import ModelFileError
from freehold.hub.archive import file_record
from freehold.hub.catalog import CatalogEntry, find_entry
from freehold.hub.manifest import MANIFEST_NAME, MAX_BYTES, FileRecord, Record, parse_record
from freehold.hub.packed import PACKED_NAME
from freehold.hub.stored import MANIFEST, WHOLE_DIRECTORY, StoredModel

Status = Literal["ok", "missing", "wrong size", "wrong content", "unreadable", "foreign link", "unknown"]
"""foreign link: a link that no pull made. unknown: there is nothing to compare the file with. All but this and "ok"
mean damage."""

_OWN_FILES = frozenset({MANIFEST_NAME, MANIFEST, PACKED_NAME})


@dataclass(frozen=True)
class Check:
    """One file: what was found of it (None if it cannot be read), and what was expected (None if nothing is known)."""

    name: str
    status: Status
    found: FileRecord | None = None
    expected: FileRecord | None = None

    @property
    def is_damage(self) -> bool:
        return self.status not in ("ok", "unknown")


def model_directory(model: StoredModel) -> Path:
    """The directory of a stored model: `path` is it, or a file in it."""
    whole = model.problem is not None or model.manifest is None or model.manifest.file == WHOLE_DIRECTORY
    return model.path if whole else model.path.parent


def stored_record(model: StoredModel) -> Record | None:
    """What is written of a stored model's files; None if nothing is. Raises ModelFileError for a damaged record."""
    path = model_directory(model) / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            return parse_record(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if (old := model.manifest) is not None:
        files = (FileRecord(old.file, old.n_bytes, old.sha256),)
        return Record(model.name, old.source, "", old.licence, old.pulled_at, files)
    entry = find_entry(model.name)
    if isinstance(entry, CatalogEntry):
        files = (FileRecord(entry.file, entry.n_bytes, entry.sha256),)
        return Record(model.name, str(entry.source), "", entry.licence, "", files)
    return None


def stored_files(model: StoredModel) -> dict[str, Path]:
    """The files of a stored model by their names in a record, without those that the store keeps for itself."""
    top = model_directory(model)
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if Path(folder) != top or name not in _OWN_FILES:
                found[path.relative_to(top).as_posix()] = path
    return dict(sorted(found.items()))


def verify(model: StoredModel, progress: Callable[[int, int], None] | None = None) -> list[Check]:
    """Read every file again and compare it with what is known of it; progress gets bytes done and in all.

    Files that nothing is known of are read and reported too. Raises ModelFileError for a damaged record.
    """
    record = stored_record(model)
    expected = {file.name: file for file in record.files} if record else {}
    present = stored_files(model)
    total, done = sum(_size(path) for path in present.values()), 0

    def read(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total)

    names = [*expected, *(name for name in present if name not in expected)]
    links = model.manifest.links if model.manifest else {}
    return [_check(name, present.get(name), expected.get(name), links.get(name), read) for name in names]


def _check(
    name: str, path: Path | None, expected: FileRecord | None, link: str | None, read: Callable[[int], None]
) -> Check:
    if path is None:
        return Check(name, "missing", None, expected)
    try:
        if path.is_symlink() and os.readlink(path) != link:
            return Check(name, "foreign link", None, expected)
        if not stat.S_ISREG(path.stat().st_mode):
            return Check(name, "unreadable", None, expected)  # a pipe or a device, which might never end
        found = file_record(path, name, read)
    except OSError:
        return Check(name, "unreadable", None, expected)
    if expected is None:
        return Check(name, "unknown", found)
    if found == expected:
        return Check(name, "ok", found, expected)
    return Check(name, "wrong size" if found.size != expected.size else "wrong content", found, expected)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
