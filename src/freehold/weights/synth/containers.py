"""Files planned to the byte before one is written: safetensors with its index, GGUF, and small ones.

Owns the writing side of both containers; what the formats are is said in the readers, `safetensors.py` and `gguf.py`.
Knows nothing of models or numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.formats import FORMATS
from freehold.weights.safetensors import INDEX_NAME
from freehold.weights.synth.tensors import Stored

SHARD_BYTES = 5 * 10**9
"""Most bytes of tensors in one safetensors file, unless a single tensor is larger."""

_GGUF_VERSION, _GGUF_ALIGNMENT = 3, 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class PlannedFile:
    """A file that is not written yet: bytes and tensors, in order."""

    name: str
    parts: tuple[bytes | Stored, ...]

    @property
    def n_bytes(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else part.n_bytes for part in self.parts)

    def pieces(self) -> Iterator[memoryview]:
        """The file's bytes, made while they are read."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield memoryview(part)
            else:
                yield from (rows.data for rows in part.pieces())


def json_file(name: str, value: Mapping[str, Any]) -> PlannedFile:
    """A JSON file as people read it."""
    return PlannedFile(name, (json.dumps(value, indent=2).encode() + b"\n",))


def safetensors_files(tensors: Sequence[Stored], note: str) -> list[PlannedFile]:
    """`model.safetensors`, or shards and their index where one file would be too large."""
    shards: list[list[Stored]] = [[]]
    room = SHARD_BYTES
    for tensor in tensors:
        if shards[-1] and tensor.n_bytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= tensor.n_bytes
    if len(shards) == 1:
        return [_safetensors_file("model.safetensors", shards[0], note)]
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.n_bytes for tensor in tensors)
    index = json_file(INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return [*(_safetensors_file(name, shard, note) for name, shard in zip(names, shards, strict=True)), index]


def _safetensors_file(name: str, tensors: Sequence[Stored], note: str) -> PlannedFile:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "description": note}}  # some readers insist on "pt"
    offset = 0
    for tensor in tensors:
        end = offset + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return PlannedFile(name, (len(text).to_bytes(8, "little") + text, *tensors))


def gguf_file(name: str, metadata: Mapping[str, Any], tensors: Sequence[Stored]) -> PlannedFile:
    """One GGUF file. Values of metadata: bool, int (u32), float (f32), str, list of str, list of int (i32)."""
    pairs = [_string(key) + _value(value) for key, value in metadata.items()]
    table, data, offset = [], list[bytes | Stored](), 0
    for tensor in tensors:
        dims = b"".join(struct.pack("<Q", size) for size in reversed(tensor.shape))
        kind = struct.pack("<IQ", FORMATS[tensor.dtype].ggml_type, offset)
        table.append(_string(tensor.name) + struct.pack("<I", len(tensor.shape)) + dims + kind)
        padding = bytes(-tensor.n_bytes % _GGUF_ALIGNMENT)
        data += [tensor, padding]
        offset += tensor.n_bytes + len(padding)
    counts = struct.pack("<IQQ", _GGUF_VERSION, len(table), len(pairs))
    header = b"".join([b"GGUF", counts, *pairs, *table])
    return PlannedFile(name, (header + bytes(-len(header) % _GGUF_ALIGNMENT), *data))


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    assert isinstance(value, list), f"no GGUF type for {type(value)}"
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    return struct.pack("<IIQ", _ARRAY, _I32, len(value)) + np.array(value, "<i4").tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
