"""A model's tensors before they are in a file, and how either container lays them out.

Owns what differs between the Hugging Face and the GGUF form of one tensor: names, interleaved and split rows, the order
of rotated rows, pieces small enough for memory. Knows no model and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from freehold.weights.synth.numbers import Encoding, Floats, Numbers, Rows, encoded

PIECE_NUMBERS = 1 << 18
"""Numbers drawn at once. Part of what a seed means: another value gives other numbers."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a published model.

    shape is Hugging Face's. Several GGUF names mean that its rows (a vector's numbers) belong to these in turn, as
    gate and up do in gpt-oss. rotated_rows: rows of one head, where GGUF has the halves of each head interleaved.
    """

    name: str
    gguf_names: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: Numbers
    rotated_rows: int = 0

    def __post_init__(self) -> None:
        assert self.n_rows % len(self.gguf_names) == 0, f"{self.name} cannot be shared out"
        assert self.n_cols % self.numbers.gguf.block == 0, f"the rows of {self.name} are not whole blocks"

    @property
    def n_cols(self) -> int:
        return 1 if isinstance(self.numbers, Floats) else self.shape[-1]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape) // self.n_cols


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it. shape is row-major; `pieces` makes its bytes, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    pieces: Callable[[], Iterator[Rows]]


def for_safetensors(tensor: Tensor, seed: int) -> Iterator[Stored]:
    """The tensors that Hugging Face's layout has for this one: two for four-bit numbers, codes and scales apart."""
    for suffix, encoding in tensor.numbers.safetensors.items():
        shape = (*tensor.shape[:-1], tensor.shape[-1] // encoding.block, *encoding.tail)
        yield Stored(
            f"{tensor.name}{suffix}",
            encoding.dtype,
            shape,
            _n_bytes(tensor.shape, encoding),
            partial(_interleaved, tensor, encoding, seed),
        )


def for_gguf(tensor: Tensor, seed: int) -> Iterator[Stored]:
    """The tensors that GGUF has for this one."""
    encoding = tensor.numbers.gguf
    axis = len(tensor.shape) - (1 if isinstance(tensor.numbers, Floats) else 2)
    share = tensor.shape[axis] // len(tensor.gguf_names)
    shape = (*tensor.shape[:axis], share, *tensor.shape[axis + 1 :])
    for i, name in enumerate(tensor.gguf_names):
        pieces = partial(_paired, tensor, encoding, seed, i)
        yield Stored(name, encoding.dtype, shape, _n_bytes(shape, encoding), pieces)


def _n_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    return math.prod(shape) // encoding.block * encoding.block_bytes


def _interleaved(tensor: Tensor, encoding: Encoding, seed: int) -> Iterator[Rows]:
    parts = [_part(tensor, encoding, seed, i) for i in range(len(tensor.gguf_names))]
    for pieces in zip(*parts, strict=True):
        yield np.stack(pieces, axis=1).reshape(-1, pieces[0].shape[1]) if len(pieces) > 1 else pieces[0]


def _paired(tensor: Tensor, encoding: Encoding, seed: int, i: int) -> Iterator[Rows]:
    for rows in _part(tensor, encoding, seed, i):
        if tensor.rotated_rows:
            heads = rows.reshape(-1, 2, tensor.rotated_rows // 2, rows.shape[1])
            yield np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
        else:
            yield rows


def _part(tensor: Tensor, encoding: Encoding, seed: int, i: int) -> Iterator[Rows]:
    """The rows that belong to the i-th GGUF tensor, in pieces that are the same for every encoding."""
    n_rows = tensor.n_rows // len(tensor.gguf_names)
    unit = tensor.rotated_rows or 1
    step = max(1, PIECE_NUMBERS // (tensor.n_cols * unit)) * unit
    sizes = (min(step, n_rows - start) for start in range(0, n_rows, step))
    name = tensor.name if len(tensor.gguf_names) == 1 else f"{tensor.name}/{i}"
    return encoded(tensor.numbers, encoding, seed, name, sizes, tensor.n_cols)
