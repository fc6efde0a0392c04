"""GGUF files for the tests: built byte by byte (so that they can be wrong), or written by PyPI `gguf`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + u32(kind) + value


def entry(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    """A tensor table entry; dims in the file's order, the contiguous one first."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + u32(count) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    header = magic + u32(version)
    header += u64(len(entries) if n_tensors is None else n_tensors) + u64(len(pairs) if n_keys is None else n_keys)
    header += b"".join(pairs) + b"".join(entries)
    padding = -len(header) % alignment if data else 0
    return header + bytes(padding) + data


def permute_like_llama_cpp(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: the halves of each head, interleaved."""
    heads = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, -1)
    return heads.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    tensors: dict[str, Any],
    architecture: str = "llama",
    split: int = 0,
    small_first: bool = False,
    **keys: Any,
) -> Path:
    """tensors: name to float32 array, or to (array, quantisation). keys: `__` stands for the dot. split: in parts of so
    many tensors; small_first: with none in the first.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split, small_first_shard=small_first)
    for key, value in keys.items():
        add_value(writer, key.replace("__", "."), value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            numbers, kind = value
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
