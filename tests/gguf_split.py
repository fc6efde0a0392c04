"""A GGUF file taken apart as llama.cpp's gguf-split does it, with PyPI `gguf` as the reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

from gguf_files import entry, gguf_bytes, pair

U16, I32 = 2, 5


def split_pairs(no: int, count: int, n_tensors: int) -> list[bytes]:
    """The keys of one part, in gguf-split's types."""
    return [
        pair("split.no", U16, no.to_bytes(2, "little")),
        pair("split.count", U16, count.to_bytes(2, "little")),
        pair("split.tensors.count", I32, n_tensors.to_bytes(4, "little", signed=True)),
    ]


def part_name(stem: str, no: int, count: int) -> str:
    return f"{stem}-{no + 1:05}-of-{count:05}.gguf"


def split_bytes(path: Path, n_parts: int, *, empty_first: bool = False) -> list[bytes]:
    """The parts of a whole file. empty_first: as with --no-tensor-first-split."""
    reader = gguf.GGUFReader(path)
    own = [raw_pair(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")]
    n_full = n_parts - empty_first
    size = -(-len(reader.tensors) // n_full)
    groups = [reader.tensors[start : start + size] for start in range(0, size * n_full, size)]
    groups = [[], *groups] if empty_first else groups
    parts = []
    for no, group in enumerate(groups):
        pairs = split_pairs(no, n_parts, len(reader.tensors))
        parts.append(_part([*own, *pairs] if no == 0 else pairs, group))
    return parts


def save_split(path: Path, directory: Path, stem: str, n_parts: int, *, empty_first: bool = False) -> list[Path]:
    """Write the parts of the file at `path` into `directory`; returns their paths in order."""
    directory.mkdir(exist_ok=True)
    paths = []
    for no, data in enumerate(split_bytes(path, n_parts, empty_first=empty_first)):
        paths.append(directory / part_name(stem, no, n_parts))
        paths[-1].write_bytes(data)
    return paths


def raw_pair(field: gguf.ReaderField) -> bytes:
    return b"".join(piece.tobytes() for piece in field.parts)


def _part(pairs: Sequence[bytes], tensors: Sequence[gguf.ReaderTensor]) -> bytes:
    entries, data = [], b""
    for tensor in tensors:
        dims = [int(dim) for dim in tensor.shape]
        entries.append(entry(tensor.name, dims, int(tensor.tensor_type), len(data)))
        data += tensor.data.tobytes()
        data += bytes(-len(data) % 32)
    return gguf_bytes(pairs, entries, data)
