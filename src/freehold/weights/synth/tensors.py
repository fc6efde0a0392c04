"""A model's tensors before they are in a file, and how either container lays them out.

Owns what differs between the Hugging Face and the GGUF form of one tensor: names, interleaved, split and transposed
rows, the order of rotated rows, stacked experts, pieces small enough for memory. Knows no model and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from freehold.weights.synth.codes import Codes
from freehold.weights.synth.numbers import Q4_K, Bits, Encoding, Mxfp4, Numbers, Rows, encoded

PIECE_NUMBERS = 1 << 18
"""Numbers drawn at once. Part of what a seed means: another value gives other numbers."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a published model, or one for each expert.

    shape is Hugging Face's. Several GGUF names mean that its rows (a vector's numbers) belong to these in turn, as
    gate and up do in gpt-oss. rotated_rows: rows of one head, where GGUF has the halves of each head interleaved.
    n_experts: there are so many, with their index for "{}" in the name, and GGUF has them stacked. head_rows: the rows
    of one head that make keys of a latent vector, and those that make values: GGUF has two tensors, [heads, latent,
    keys] and [heads, values, latent].
    """

    name: str
    gguf_names: tuple[str, ...]
    shape: tuple[int, ...]
    numbers: Numbers
    rotated_rows: int = 0
    n_experts: int = 0
    head_rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        assert self.n_rows % len(self.gguf_names) == 0, f"{self.name} cannot be shared out"
        n_cols = self.head_rows[0] if self.head_rows else self.n_cols
        assert n_cols % self.numbers.gguf.block == 0, f"the rows of {self.name} are not whole blocks"

    @property
    def n_cols(self) -> int:
        return self.shape[-1] if isinstance(self.numbers, Codes | Mxfp4) else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape) // self.n_cols

    @property
    def n_parameters(self) -> int:
        return math.prod(self.shape) * max(1, self.n_experts)

    def published(self) -> Iterator[Tensor]:
        """The tensors as they are published: this one, or one for each expert."""
        if not self.n_experts:
            yield self
        for index in range(self.n_experts):
            yield replace(self, name=self.name.format(index), n_experts=0)


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it. shape is row-major; `pieces` makes its bytes, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    pieces: Callable[[], Iterator[Rows]]


def in_four_bits(tensor: Tensor) -> Tensor:
    """The tensor with numbers that Q4_K holds, where files of four bits have it.

    That is not so for embedding and head, and for a matrix whose rows in GGUF are not whole blocks of 256.
    """
    numbers = tensor.numbers
    if not isinstance(numbers, Codes) or tensor.gguf_names[0] in ("token_embd.weight", "output.weight"):
        return tensor
    if tensor.head_rows or tensor.n_cols % Q4_K.block:
        return tensor
    return replace(tensor, numbers=replace(numbers, n_bits=4))


def for_safetensors(tensor: Tensor, seed: int) -> Iterator[Stored]:
    """The tensors that Hugging Face's layout has for this one: of quantised numbers two, codes and scales apart."""
    for one in tensor.published():
        for suffix, encoding in one.numbers.safetensors.items():
            pieces = partial(_interleaved, one, encoding, seed)
            shape = (*encoding.blocks(one.shape), *encoding.tail)
            yield Stored(f"{one.name}{suffix}", encoding.dtype, shape, encoding.n_bytes(one.shape), pieces)


def for_gguf(tensor: Tensor, seed: int) -> Iterator[Stored]:
    """The tensors that GGUF has for this one."""
    encoding = tensor.numbers.gguf
    for i, (name, shape) in enumerate(zip(tensor.gguf_names, _gguf_shapes(tensor), strict=True)):
        pieces = partial(_by_head if tensor.head_rows else _stacked, tensor, encoding, seed, i)
        yield Stored(name, encoding.dtype, shape, encoding.n_bytes(shape), pieces)


def _gguf_shapes(tensor: Tensor) -> list[tuple[int, ...]]:
    if tensor.head_rows:
        keys, values = tensor.head_rows
        n_heads, latent = tensor.n_rows // (keys + values), tensor.n_cols
        return [(n_heads, latent, keys), (n_heads, values, latent)]
    axis = len(tensor.shape) - (1 if tensor.n_cols == 1 else 2)
    share = tensor.shape[axis] // len(tensor.gguf_names)
    shape = (*tensor.shape[:axis], share, *tensor.shape[axis + 1 :])
    return [(tensor.n_experts, *shape) if tensor.n_experts else shape] * len(tensor.gguf_names)


def _interleaved(tensor: Tensor, encoding: Encoding, seed: int) -> Iterator[Rows]:
    """The rows of one published tensor, drawn as the tensors of GGUF that it is interleaved of."""
    n_parts = 1 if tensor.head_rows else len(tensor.gguf_names)
    parts = [_part(tensor, encoding, seed, i, n_parts) for i in range(n_parts)]
    for pieces in zip(*parts, strict=True):
        yield np.stack(pieces, axis=1).reshape(-1, pieces[0].shape[1]) if len(pieces) > 1 else pieces[0]


def _stacked(tensor: Tensor, encoding: Encoding, seed: int, i: int) -> Iterator[Rows]:
    """The rows of the i-th tensor of GGUF, expert after expert."""
    for one in tensor.published():
        for rows in _part(one, encoding, seed, i, len(one.gguf_names)):
            if one.rotated_rows:
                heads = rows.reshape(-1, 2, one.rotated_rows // 2, rows.shape[1])
                yield np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
            else:
                yield rows


def _by_head(tensor: Tensor, encoding: Encoding, seed: int, i: int) -> Iterator[Rows]:
    """The rows of either tensor of `head_rows`: the keys' (i = 0), transposed head by head, or the values'."""
    assert isinstance(tensor.numbers, Codes)
    assert tensor.head_rows
    keys, bits = tensor.head_rows[0], Bits(seed, tensor.name)
    for n_rows in _piece_sizes(tensor, tensor.n_rows):
        codes = tensor.numbers.codes(bits, n_rows, tensor.n_cols).reshape(-1, sum(tensor.head_rows), tensor.n_cols)
        part = codes[:, keys:] if i else codes[:, :keys].swapaxes(1, 2)
        yield tensor.numbers.encode(np.ascontiguousarray(part).reshape(-1, part.shape[2]), encoding)


def _part(tensor: Tensor, encoding: Encoding, seed: int, i: int, n_parts: int) -> Iterator[Rows]:
    """The rows that belong to the i-th of the tensors it is interleaved of, in the same pieces for every encoding."""
    name = tensor.name if n_parts == 1 else f"{tensor.name}/{i}"
    return encoded(tensor.numbers, encoding, seed, name, _piece_sizes(tensor, tensor.n_rows // n_parts), tensor.n_cols)


def _piece_sizes(tensor: Tensor, n_rows: int) -> Iterator[int]:
    """In rows; heads and blocks stay whole."""
    unit = math.lcm(tensor.rotated_rows or 1, sum(tensor.head_rows or (1,)), tensor.numbers.row_unit)
    step = max(1, PIECE_NUMBERS // (tensor.n_cols * unit)) * unit
    return (min(step, n_rows - start) for start in range(0, n_rows, step))
