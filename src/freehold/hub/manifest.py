"""freehold.json: what a model is, where it came from and which bytes it consists of. Beside it in the store, and first
in an archive.

Owns the record, its JSON, and which names its files may have. A record is hostile until it is read here: whoever has
one knows that every name is a relative path that stays inside a directory on every platform. Touches no disk.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from freehold.errors import ModelFileError

MANIFEST_NAME = "freehold.json"
FORMAT = 1
MAX_BYTES = 4 << 20
MAX_FILES = 10_000

_MAX_PARTS, _MAX_PART, _MAX_NAME = 4, 200, 400  # of a file's name: directories and characters
_FORBIDDEN = frozenset('/\\:*?"<>|')
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))])
"""Words that Windows reads as a device, whatever the suffix."""
_OURS = frozenset([MANIFEST_NAME, "manifest.json", "weights.packed"])
"""What the store itself keeps beside a model."""
_MODEL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = {"source": 2000, "revision": 200, "licence": 200, "fetched": 40}


@dataclass(frozen=True)
class FileRecord:
    """One file of a model: its path below the model's directory, with "/" between parts, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A model and its files. fetched is UTC in ISO 8601; a text that is not known is empty."""

    name: str
    source: str
    revision: str
    licence: str
    fetched: str
    files: tuple[FileRecord, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> bytes:
        """The content of freehold.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2).encode() + b"\n"


def parse_record(data: bytes, where: str) -> Record:
    """A record from its JSON. Raises ModelFileError naming `where`, and what is wrong with what."""
    if len(data) > MAX_BYTES:
        _refuse(where, f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        values = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"it is not JSON ({_short(str(error))})")
    if not isinstance(values, dict):
        _refuse(where, "it is not a JSON object")
    if type(values.get("format")) is not int or values["format"] != FORMAT:
        _refuse(where, f"its format is {_short(values.get('format'))}; this Freehold reads format {FORMAT}")
    name = values.get("name")
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
        _refuse(where, f"the name {_short(name)} is not a model's name in the store")
    texts = {key: _text(values, key, limit, where) for key, limit in _TEXTS.items()}
    return Record(name=name, files=_files(values.get("files"), where), **texts)


def name_problem(name: str) -> str | None:
    """Why a file of a model may not have this name, or None if it may."""
    if not name or len(name) > _MAX_NAME:
        return f"it has {len(name)} characters; expected 1 to {_MAX_NAME}"
    parts = name.split("/")
    if len(parts) > _MAX_PARTS:
        return f"it has more than {_MAX_PARTS} parts"
    return next((problem for part in parts if (problem := _part_problem(part))), None)


def same_place(name: str) -> str:
    """Equal for names that some file system takes for the same: those that differ in case or in how Unicode is put."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check_names(names: Sequence[str], where: str) -> None:
    """ModelFileError for a name that `name_problem` refuses, for two that clash, and for a file that is a directory of
    another.
    """
    seen: set[str] = set()
    for name in names:
        if problem := name_problem(name):
            _refuse(where, f"it names a file {_short(name)}: {problem}")
        if (place := same_place(name)) in seen:
            _refuse(where, f"it names the file {_short(name)} twice")
        seen.add(place)
    for place in seen:
        parts = place.split("/")
        if any("/".join(parts[:n]) in seen for n in range(1, len(parts))):
            _refuse(where, f"{_short(place)} lies inside of another file")


def _part_problem(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "a part is empty, '.' or '..'"
    if len(part) > _MAX_PART or len(part.encode("utf-8", "surrogatepass")) > 255:
        return "a part is too long"
    if not part.isprintable() or _FORBIDDEN & set(part):
        return "it has a character that a file's name may not have on every system"
    if part[0] in ".~- " or part[-1] in ". ":
        return "a part begins with '.', '~', '-' or a space, or ends with '.' or a space"
    if part.partition(".")[0].rstrip().lower() in _DEVICES:
        return "Windows reads it as a device"
    if same_place(part) in _OURS:
        return "the store keeps a file of its own there"
    return None


def _files(values: Any, where: str) -> tuple[FileRecord, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_FILES:
        _refuse(where, f"files is {_short(values)}; expected a list of 1 to {MAX_FILES} files")
    files = tuple(_file(value, where) for value in values)
    check_names([file.name for file in files], where)
    return files


def _file(value: Any, where: str) -> FileRecord:
    if not isinstance(value, dict):
        _refuse(where, f"a file is {_short(value)}; expected an object with name, size and sha256")
    name, size, sha256 = value.get("name"), value.get("size"), value.get("sha256")
    if not isinstance(name, str):
        _refuse(where, f"a file's name is {_short(name)}; expected a text")
    if type(size) is not int or not 0 <= size < 1 << 53:
        _refuse(where, f"the size of {_short(name)} is {_short(size)}; expected a number of bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        _refuse(where, f"the sha256 of {_short(name)} is {_short(sha256)}; expected 64 lower-case hexadecimal digits")
    return FileRecord(name, size, sha256)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _text(values: Mapping[str, Any], key: str, limit: int, where: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        _refuse(where, f"{key} is {_short(value)}; expected printable text of up to {limit} characters")
    return value


def _refuse(where: str, what: str) -> NoReturn:
    raise ModelFileError(f"{where} is no record of a model: {what}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
