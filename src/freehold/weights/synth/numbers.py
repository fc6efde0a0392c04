"""Random numbers of the scale that trained weights have, the same in every file format.

Owns three kinds of numbers and, for each, its bytes in safetensors and in GGUF. Every kind is chosen so that both hold
it exactly. What is drawn depends on the seed and a name and on nothing else. Knows nothing of files or of models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from freehold.formats import FORMATS, MXFP4_BLOCK

Rows = npt.NDArray[np.uint8]
"""[rows, row bytes]: some rows of a tensor as a file stores them."""

QUANT_BLOCK = MXFP4_BLOCK
"""Numbers that share a scale in MXFP4, and in Q8_0 as well."""

_MXFP4_BYTES = MXFP4_BLOCK // 2  # of one block's numbers, without its scale

_CODE_STD = math.sqrt((31 * 254 * 256 / 12 + 127**2) / QUANT_BLOCK)
"""Of a Codes number before scaling: 31 of 32 are uniform over -127..127, one is 127 or -127."""

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
    """How a file stores numbers: block_bytes hold `block` numbers; `tail` is a block's shape where it has one."""

    dtype: str  # the container's name for it
    block: int
    block_bytes: int
    tail: tuple[int, ...] = ()


BF16, F32, Q8_0, MXFP4 = (
    Encoding(name, FORMATS[name].block, FORMATS[name].n_bytes) for name in ("BF16", "F32", "Q8_0", "MXFP4")
)
MXFP4_BLOCKS = Encoding("U8", QUANT_BLOCK, _MXFP4_BYTES, (_MXFP4_BYTES,))
MXFP4_SCALES = Encoding("U8", QUANT_BLOCK, 1)


class Numbers(Protocol):
    """A kind of numbers. `safetensors` maps what is appended to the tensor's name to how that tensor is stored."""

    safetensors: ClassVar[Mapping[str, Encoding]]
    gguf: ClassVar[Encoding]

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        """The next n_rows of a tensor, drawn from `bits` and encoded."""
        ...


@dataclass(frozen=True)
class Codes:
    """For matrices kept in 16 bits: whole numbers from -127 to 127 times one power of two.

    That is exact in bfloat16. In Q8_0 it is exact too, and no quantiser can choose another scale, because every block
    of 32 holds 127 or -127. The true standard deviation is within a factor of 1.42 of `std`.
    """

    std: float
    safetensors: ClassVar[Mapping[str, Encoding]] = {"": BF16}
    gguf: ClassVar[Encoding] = Q8_0

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        codes = bits.take("codes", n_rows * n_cols).view(np.int8).reshape(-1, QUANT_BLOCK)
        np.maximum(codes, -127, out=codes)
        at = np.arange(0, codes.size, QUANT_BLOCK) + (codes[:, 0] & 31)  # anywhere in its block
        flat = codes.reshape(-1)
        flat[at] = np.where(flat[at] < 0, -127, 127)
        scale = np.float32(2.0 ** round(math.log2(self.std / _CODE_STD)))
        if encoding is BF16:
            return _bf16_bytes(codes * scale).reshape(n_rows, -1)
        blocks = np.empty(len(codes), FORMATS["Q8_0"].layout)
        blocks["d"], blocks["qs"] = scale, codes
        return blocks.view(np.uint8).reshape(n_rows, -1)


@dataclass(frozen=True)
class Floats:
    """For vectors and the router: close to a normal distribution, cut off at 3.5 standard deviations; bfloat16 or F32.

    Each number is a row of its own.
    """

    mean: float
    std: float
    safetensors: ClassVar[Mapping[str, Encoding]] = {"": BF16}
    gguf: ClassVar[Encoding] = F32

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        assert n_cols == 1
        words = bits.take("normal", 8 * n_rows).view("<u2").reshape(n_rows, 4)
        sums = words.sum(axis=1, dtype=np.int64) - 2 * 65535
        numbers = _bf16_bytes((self.mean + sums * (self.std / _NORMAL_STD)).astype(np.float32))
        if encoding is F32:
            numbers = (numbers.view("<u2").astype("<u4") << 16).view(np.uint8)
        return numbers.reshape(n_rows, -1)


@dataclass(frozen=True)
class Mxfp4:
    """For experts: four-bit floats drawn uniformly, a power of two for each 32, from three exponents next to another.

    The true standard deviation is within a factor of 1.42 of `std`.
    """

    std: float
    safetensors: ClassVar[Mapping[str, Encoding]] = {"_blocks": MXFP4_BLOCKS, "_scales": MXFP4_SCALES}
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


def _bf16_bytes(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
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
