"""Random numbers of the scale that trained weights have, the same in every file format.

Owns what a kind of numbers is, how it is drawn, and three of the kinds; the whole numbers of quantised matrices are in
`codes.py`. Every kind is chosen so that safetensors and GGUF both hold it exactly. What is drawn depends on the seed, a
name and the kind, and on nothing else. Knows nothing of files or of models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from freehold.formats import F8_BLOCK, FORMATS, MXFP4_BLOCK

Rows = npt.NDArray[np.uint8]
"""[rows, row bytes]: some rows of a tensor as a file stores them."""

QUANT_BLOCK = MXFP4_BLOCK
"""Numbers that share a scale in MXFP4, and in Q8_0 as well."""

_MXFP4_BYTES = MXFP4_BLOCK // 2  # of one block's numbers, without its scale

_E2M1_STD = math.sqrt((0.5**2 + 1 + 1.5**2 + 2**2 + 3**2 + 4**2 + 6**2) / 8)
"""Of a four-bit float drawn uniformly from its sixteen codes."""

_EXPONENT_STEPS = np.array([-2, -1, 0, 0])
"""What a block's exponent differs by from its tensor's; drawn uniformly."""

_NORMAL_STD = math.sqrt(4 * (2**32 - 1) / 12)
"""Of the sum of four 16-bit numbers, which is close to normal and, being whole, the same on every platform."""


class Bits:
    """Random bytes for one name: an endless stream for each purpose."""

    def __init__(self, seed: int, name: str) -> None:
        self._key = f"{seed}/{name}"
        self._streams: dict[str, np.random.SFC64] = {}

    def take(self, purpose: str, n_bytes: int) -> npt.NDArray[np.uint8]:
        """The next bytes for `purpose`. Whole words are drawn: what is left of the last one is dropped."""
        if purpose not in self._streams:
            digest = hashlib.sha256(f"{self._key}/{purpose}".encode()).digest()
            self._streams[purpose] = np.random.SFC64(int.from_bytes(digest, "little"))
        words: npt.NDArray[np.uint64] = self._streams[purpose].random_raw(-(-n_bytes // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:n_bytes]


@dataclass(frozen=True)
class Encoding:
    """How a file stores numbers: block_bytes hold `block` numbers; `tail` is a block's shape where it has one.

    rows: of a matrix, how many share a block. The last block of a row or column may then be partial.
    """

    dtype: str  # the container's name for it
    block: int
    block_bytes: int
    tail: tuple[int, ...] = ()
    rows: int = 1

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor in blocks."""
        in_row = -(-shape[-1] // self.block)
        return (*shape[:-1], in_row) if self.rows == 1 else (-(-shape[0] // self.rows), in_row)

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """The bytes of a tensor."""
        return math.prod(self.blocks(shape)) * self.block_bytes


def _encoding(name: str) -> Encoding:
    return Encoding(name, FORMATS[name].block, FORMATS[name].n_bytes)


BF16, F32, Q8_0, Q4_K, MXFP4 = map(_encoding, ("BF16", "F32", "Q8_0", "Q4_K", "MXFP4"))
F8_E4M3 = Encoding("F8_E4M3", 1, 1)
F8_SCALES = Encoding("F32", F8_BLOCK, 4, rows=F8_BLOCK)
MXFP4_BLOCKS = Encoding("U8", QUANT_BLOCK, _MXFP4_BYTES, (_MXFP4_BYTES,))
MXFP4_SCALES = Encoding("U8", QUANT_BLOCK, 1)

Encodings = Mapping[str, Encoding]
"""What is appended to a tensor's name, to how the tensor of that name is stored."""


class Numbers(Protocol):
    """A kind of numbers, and how either container stores it. row_unit: rows are drawn in multiples of this number."""

    @property
    def row_unit(self) -> int: ...

    @property
    def safetensors(self) -> Encodings: ...

    @property
    def gguf(self) -> Encoding: ...

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        """The next n_rows of a tensor, drawn from `bits` and encoded."""
        ...


@dataclass(frozen=True)
class Floats:
    """For vectors and the router: close to a normal distribution, cut off at 3.5 standard deviations.

    Each number is a row of its own, and one of bfloat16 even where it is published as float32.
    """

    mean: float
    std: float
    published: Encoding = BF16
    row_unit: ClassVar[int] = 1
    gguf: ClassVar[Encoding] = F32

    @property
    def safetensors(self) -> Encodings:
        return {"": self.published}

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        assert n_cols == 1
        words = bits.take("normal", 8 * n_rows).view("<u2").reshape(n_rows, 4)
        sums = words.sum(axis=1, dtype=np.int64) - 2 * 65535
        numbers = bf16_bytes((self.mean + sums * (self.std / _NORMAL_STD)).astype(np.float32))
        if encoding is F32:
            numbers = (numbers.view("<u2").astype("<u4") << 16).view(np.uint8)
        return numbers.reshape(n_rows, -1)


@dataclass(frozen=True)
class Given:
    """A vector that is computed, not drawn, and that only GGUF has. Each number is a row of its own."""

    values: tuple[float, ...]
    row_unit: ClassVar[int] = 1
    safetensors: ClassVar[Encodings] = {}
    gguf: ClassVar[Encoding] = F32

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        assert (n_rows, n_cols) == (len(self.values), 1), "the whole vector is one piece"
        return np.array(self.values, "<f4").view(np.uint8).reshape(n_rows, -1)


@dataclass(frozen=True)
class Mxfp4:
    """For experts: four-bit floats drawn uniformly, a power of two for each 32, from three exponents next to another.

    The true standard deviation is within a factor of 1.42 of `std`.
    """

    std: float
    row_unit: ClassVar[int] = 1
    safetensors: ClassVar[Encodings] = {"_blocks": MXFP4_BLOCKS, "_scales": MXFP4_SCALES}
    gguf: ClassVar[Encoding] = MXFP4

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        n_blocks = n_rows * n_cols // QUANT_BLOCK
        if encoding is MXFP4_SCALES:
            return self._scales(bits, n_blocks).reshape(n_rows, -1)
        codes = bits.take("codes", n_blocks * _MXFP4_BYTES)
        if encoding is MXFP4_BLOCKS:
            return codes.reshape(n_rows, -1)
        blocks = np.empty(n_blocks, FORMATS["MXFP4"].layout)
        blocks["e"] = self._scales(bits, n_blocks)
        blocks["qs"] = _halves_from_pairs(codes).reshape(-1, _MXFP4_BYTES)
        return blocks.view(np.uint8).reshape(n_rows, -1)

    def _scales(self, bits: Bits, n_blocks: int) -> npt.NDArray[np.uint8]:
        step_rms = math.sqrt(float((4.0**_EXPONENT_STEPS).mean()))
        exponent = 127 + round(math.log2(self.std / (_E2M1_STD * step_rms)))
        exponents = (exponent + _EXPONENT_STEPS).astype(np.uint8)
        return np.take(exponents, bits.take("scales", n_blocks) & 3)


def encoded(
    numbers: Numbers, encoding: Encoding, seed: int, name: str, sizes: Iterator[int], n_cols: int
) -> Iterator[Rows]:
    """A tensor in pieces of so many rows, from its first row to its last."""
    bits = Bits(seed, name)
    for n_rows in sizes:
        yield numbers.rows(bits, encoding, n_rows, n_cols)


def bf16_bytes(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The upper halves of float32 numbers: bfloat16, rounded towards zero."""
    halves: Any = numbers.astype("<f4", copy=False).view("<u2").reshape(-1, 2)
    return np.ascontiguousarray(halves[:, 1]).view(np.uint8)


def _halves_from_pairs(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Four-bit numbers of blocks of 32, from the order of safetensors to that of GGUF.

    There byte b of a block holds numbers 2b and 2b + 1, here b and b + 16, the first in the low bits.
    """
    words = codes.view("<u8").reshape(-1, 2)
    first, second = words[:, 0], words[:, 1]  # numbers 0-15 and 16-31
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    result = np.empty((codes.size // 2, 2), np.uint8)
    # Numbers 0, 2, 4 ... beside 16, 18 ..., then 1, 3, 5 ... beside 17, 19 ...
    result[:, 0] = (first & low | (second & low) << np.uint64(4)).view(np.uint8)
    result[:, 1] = (first >> np.uint64(4) & low | second & ~low).view(np.uint8)
    return result.reshape(-1)
