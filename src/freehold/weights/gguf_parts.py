"""A GGUF model as one table of tensors, whether it is one file or comes in parts.

Owns finding the parts beside each other by their names, and the check that they are all there and belong together.
Knows the `split.` keys; what is inside of each part, `gguf.py` has checked.

Source: llama.cpp's gguf-split. The parts of MODEL are called MODEL-00001-of-00003.gguf and so on; each says its index
from 0 (split.no), how many there are (split.count) and how many tensors they all have (split.tensors.count). Metadata
lies in the first, which may have no tensor; the others repeat none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from freehold.errors import ModelFileError, NotFoundError
from freehold.formats import QTensor
from freehold.weights.gguf import MAX_TENSORS, GGUFFile
from freehold.weights.mapping import TensorSpan
from freehold.weights.quote import quote

_MAX_PARTS = 1 << 10  # several times what any model has; each takes a file descriptor
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.[gG][gG][uU][fF])")
_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_ALIGNMENT = "general.alignment"  # of the offsets in one file; nothing that parts have to agree on
_FETCH = "fetch all parts from one place"


def part_paths(path: Path) -> list[Path]:
    """All parts of the model that a file is part of, in order, by its name alone; of another file, itself."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= _MAX_PARTS:
        return [path]
    stem, count, suffix = match["stem"], match["count"], match["suffix"]
    return [path.with_name(f"{stem}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


class GGUFParts:
    """The open GGUF files of one model. Tensors are views of the maps; `get` touches no page of them.

    path: the file, or the first part. metadata: that of the first part, as `GGUFFile` has it. names: in the order of
    the parts and of their bytes.
    """

    def __init__(self, path: Path) -> None:
        """`path`: the file, or any part. Raises as `GGUFFile` does, and nothing stays open then."""
        paths = part_paths(path)
        self.path = paths[0]
        _refuse_missing(path, paths)
        self._files: list[GGUFFile] = []
        self._file_of: dict[str, GGUFFile] = {}
        try:
            for part in paths:
                file = GGUFFile(part)
                self._files.append(file)
                if len(paths) == 1:
                    _check_single(file)
                else:
                    _check_part(file, len(self._files) - 1, len(paths), self._files[0])
                self._add_tensors(file)
            self._check_total()
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, Any] = self._files[0].metadata
        self.names: tuple[str, ...] = tuple(self._file_of)
        self.n_bytes = sum(file.n_bytes for file in self._files)

    def span(self, name: str) -> TensorSpan:
        """Type, shape and place (in its own file) of a tensor; NotFoundError if there is none of that name."""
        return self._file(name).span(name)

    def get(self, name: str) -> QTensor:
        """The tensor, as a view of its mapped file; NotFoundError if there is none of that name."""
        return self._file(name).get(name)

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are no longer needed."""
        self._file(name).release(name)

    def close(self) -> None:
        """Unmap all files; tensors already taken stay valid."""
        for file in self._files:
            file.close()

    def _file(self, name: str) -> GGUFFile:
        try:
            return self._file_of[name]
        except KeyError:
            raise NotFoundError(f"{self.path} has no tensor {quote(name)}") from None

    def _add_tensors(self, file: GGUFFile) -> None:
        for name in file.names:
            if name in self._file_of:
                raise ModelFileError(
                    f"{file.path} holds the tensor {quote(name)}, as {self._file_of[name].path.name} does"
                )
            self._file_of[name] = file

    def _check_total(self) -> None:
        if len(self._files) > 1 and len(self._file_of) != (expected := self._files[0].metadata[_TENSORS]):
            raise ModelFileError(
                f"{self.path}: the {len(self._files)} parts hold {len(self._file_of)} tensors, but {_TENSORS} is "
                f"{expected}: some are of another model; {_FETCH}"
            )


def _refuse_missing(path: Path, paths: list[Path]) -> None:
    missing = [quote(part.name) for part in paths if not part.exists()] if len(paths) > 1 else []
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise NotFoundError(
            f"{path}: {len(missing)} of the {len(paths)} parts of this model are missing beside it: "
            f"{', '.join(missing[:5])}{more}; fetch them as well (if this file is a whole model, rename it)"
        )


def _check_single(file: GGUFFile) -> None:
    count = file.metadata.get(_COUNT, 1)
    if type(count) is not int or count > 1:
        raise ModelFileError(
            f"{file.path}: {_said(file, _COUNT)}, so this is one part of several, but its name does not say which; "
            f"expected its published name, as NAME-00001-of-00003.gguf, with the others (up to {_MAX_PARTS}) beside it"
        )


def _check_part(part: GGUFFile, index: int, n_parts: int, first: GGUFFile) -> None:
    """A part says that it is what its name says, and nothing that the first does not."""
    _expect(part, _COUNT, n_parts, "its name says")
    _expect(part, _NO, index, "its name says")
    if part is first:
        n_tensors = part.metadata.get(_TENSORS)
        if type(n_tensors) is not int or not 0 < n_tensors <= MAX_TENSORS:
            raise ModelFileError(f"{part.path}: {_said(part, _TENSORS)}; expected a number from 1 to {MAX_TENSORS}")
        return
    _expect(part, _TENSORS, first.metadata[_TENSORS], f"{first.path.name} says")
    for key, value in part.metadata.items():
        if not key.startswith("split.") and key != _ALIGNMENT and not _is_same(value, first.metadata.get(key)):
            raise ModelFileError(
                f"{part.path}: {quote(key)} is {quote(value)}, but {first.path.name} does not say so: they belong to "
                f"different models; {_FETCH}"
            )


def _expect(file: GGUFFile, key: str, expected: int, why: str) -> None:
    value = file.metadata.get(key)
    if type(value) is not int or value != expected:
        raise ModelFileError(f"{file.path}: {_said(file, key)}; expected {expected}, as {why}: fetch this part again")


def _said(file: GGUFFile, key: str) -> str:
    return f"{key} is {quote(file.metadata[key])}" if key in file.metadata else f"there is no {key}"


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return value.dtype == other.dtype and np.array_equal(value, other)
    return type(value) is type(other) and bool(value == other)
