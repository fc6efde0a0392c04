"""Whole numbers times one power of two: the numbers of matrices that a file may hold quantised.

Owns how they are drawn for 8 and for 4 bits, and their bytes in bfloat16, in FP8 with the scales of blocks apart, in
Q8_0 and in Q4_K: every one exact. Knows nothing of files or of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from freehold.formats import F8_BLOCK, FORMATS
from freehold.weights.synth.numbers import (
    BF16,
    F8_E4M3,
    F8_SCALES,
    Q4_K,
    Q8_0,
    QUANT_BLOCK,
    Bits,
    Encoding,
    Encodings,
    Rows,
    bf16_bytes,
)

CodeArray = npt.NDArray[np.int8]
"""[rows, cols] of whole numbers, -127 to 127."""

_BY_BYTE = np.arange(256).astype(np.uint8).view(np.int8).astype(int)  # the signed number that each byte is


def _four_significant_bits() -> CodeArray:
    """By byte: its number, cut towards zero to E4M3's four bits, and to 112, of which four times is E4M3's largest.

    None is 0, so that its code can be halved like any other's.
    """
    size = np.clip(np.abs(_BY_BYTE), 1, 112)
    unit = np.exp2(np.maximum(np.floor(np.log2(size)) - 3, 0)).astype(int)
    numbers: CodeArray = (np.where(_BY_BYTE < 0, -1, 1) * (size // unit * unit)).astype(np.int8)
    return numbers


def _e4m3_of_quadruple() -> npt.NDArray[np.uint8]:
    """By byte: the E4M3 code of four times its number, right where that has no more than four significant bits."""
    fraction, exponent = np.frexp(4.0 * np.abs(_BY_BYTE))  # fraction from 0.5 to 1
    code = (exponent + 6) * 8 + (fraction * 16 - 8).astype(int)
    codes: npt.NDArray[np.uint8] = (code | np.where(_BY_BYTE < 0, 0x80, 0)).astype(np.uint8)
    return codes


def _translated(drawn: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """table[drawn], byte by byte: ten times as fast as numpy, which makes indices of eight bytes first."""
    return np.frombuffer(bytearray(drawn).translate(table.tobytes()), table.dtype).reshape(drawn.shape)


_SHORT_CODES = _four_significant_bits()
_E4M3 = _e4m3_of_quadruple()
_E4M3_STEP = 8  # between the code of a number and that of its half
_N_SHIFTS = 4  # so many scales, each twice another; the least number is then 4 / 2^3, far above the subnormal ones

_STD_OF_EIGHT = math.sqrt((31 * 254 * 256 / 12 + 127**2) / QUANT_BLOCK)
"""31 of 32 numbers are uniform over -127 to 127, one is 127 or -127."""
_STD_OF_SHORT = float(_SHORT_CODES.astype(float).std())

_NIBBLE_OFFSET = 15  # the numbers are 2 q - 15 for q from 0 to 15: odd, and as often below 0 as above
_FACTORS = np.array([1, 2, 4, 4], np.uint8)
"""What a block's numbers are multiplied by, drawn uniformly."""
_STD_OF_FOUR = math.sqrt((16**2 - 1) / 3 * float((_FACTORS.astype(float) ** 2).mean()))


@dataclass(frozen=True)
class Codes:
    """For matrices: whole numbers from -127 to 127 times one power of two, for 8 or for 4 bits.

    n_bits 8: uniform, and every block of 32 holds 127 or -127, so that no quantiser of Q8_0 can choose another scale.
    With fp8, which is where the publisher's format is FP8 in blocks of 128 x 128, cut to four significant bits instead.
    n_bits 4: odd numbers from -15 to 15, the 32 of a block times 1, 2 or 4; Q4_K holds them as 2 q - 15.

    The true standard deviation is within a factor of 1.42 of `std`. The scales in an FP8 file differ from block to
    block by powers of two that its numbers make up for.
    """

    std: float
    fp8: bool = False
    n_bits: Literal[4, 8] = 8

    @property
    def row_unit(self) -> int:
        return F8_BLOCK if self.fp8 else 1

    @property
    def safetensors(self) -> Encodings:
        return {"": F8_E4M3, "_scale_inv": F8_SCALES} if self.fp8 else {"": BF16}

    @property
    def gguf(self) -> Encoding:
        return Q8_0 if self.n_bits == 8 else Q4_K

    def rows(self, bits: Bits, encoding: Encoding, n_rows: int, n_cols: int) -> Rows:
        if encoding is F8_SCALES:
            return self._scales(_shifts(bits, n_rows, n_cols))
        if encoding is Q4_K:
            return self._q4_k(bits, n_rows, n_cols)
        codes = self.codes(bits, n_rows, n_cols)
        return _e4m3(codes, _shifts(bits, n_rows, n_cols)) if encoding is F8_E4M3 else self.encode(codes, encoding)

    def codes(self, bits: Bits, n_rows: int, n_cols: int) -> CodeArray:
        """The next n_rows of a tensor, drawn from `bits`, in units of the scale."""
        if self.n_bits == 4:
            packed, factors = self._draw_four(bits, n_rows * n_cols)
            nibbles = np.stack([packed & 15, packed >> 4], axis=1).astype(np.int8)  # [pairs of blocks, 2, 32]
            odd = 2 * nibbles - np.int8(_NIBBLE_OFFSET)
            return (odd * factors.astype(np.int8).reshape(-1, 2, 1)).reshape(n_rows, n_cols)
        drawn = bits.take("codes", n_rows * n_cols)
        if self.fp8:
            return _translated(drawn, _SHORT_CODES).reshape(n_rows, n_cols)
        codes = drawn.view(np.int8).reshape(-1, QUANT_BLOCK)
        np.maximum(codes, -127, out=codes)
        at = np.arange(0, codes.size, QUANT_BLOCK) + (codes[:, 0] & 31)  # anywhere in its block
        flat = codes.reshape(-1)
        flat[at] = np.where(flat[at] < 0, -127, 127)
        return flat.reshape(n_rows, n_cols)

    def encode(self, codes: CodeArray, encoding: Encoding) -> Rows:
        """Numbers in BF16 or Q8_0, whichever way they were rearranged."""
        if encoding is BF16:
            return bf16_bytes(codes * self._scale).reshape(len(codes), -1)
        assert encoding is Q8_0, f"{encoding.dtype} depends on how the numbers were drawn"
        blocks = np.empty(codes.size // QUANT_BLOCK, FORMATS["Q8_0"].layout)
        blocks["d"], blocks["qs"] = self._scale, codes.reshape(-1, QUANT_BLOCK)
        return blocks.view(np.uint8).reshape(len(codes), -1)

    @property
    def _scale(self) -> np.float32:
        std = _STD_OF_FOUR if self.n_bits == 4 else _STD_OF_SHORT if self.fp8 else _STD_OF_EIGHT
        return np.float32(2.0 ** round(math.log2(self.std / std)))

    def _scales(self, shifts: npt.NDArray[np.uint8]) -> Rows:
        scales = np.ldexp(self._scale / 4, shifts.astype(np.int32)).astype("<f4")
        return scales.view(np.uint8)

    def _draw_four(self, bits: Bits, n: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Nibbles as Q4_K has them [n / 64, 32], the first block of 32 in the low ones, and a factor for each block."""
        packed = bits.take("codes", n // 2).reshape(-1, QUANT_BLOCK)
        return packed, np.take(_FACTORS, bits.take("factors", n // QUANT_BLOCK) & 3)

    def _q4_k(self, bits: Bits, n_rows: int, n_cols: int) -> Rows:
        """d and dmin are the unit's double and itself: scale * q - minimum = unit * (2 q - 15) * factor."""
        packed, factors = self._draw_four(bits, n_rows * n_cols)
        blocks = np.empty(n_rows * n_cols // FORMATS["Q4_K"].block, FORMATS["Q4_K"].layout)
        blocks["d"], blocks["dmin"] = 2 * self._scale, self._scale
        blocks["scales"] = _six_bits(factors.reshape(-1, 8), factors.reshape(-1, 8) * np.uint8(_NIBBLE_OFFSET))
        blocks["qs"] = packed.reshape(len(blocks), -1)
        return blocks.view(np.uint8).reshape(n_rows, -1)


def _six_bits(scales: npt.NDArray[np.uint8], minima: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Eight scales and eight minima of six bits in Q4_K's twelve bytes, [blocks, 12]."""
    low, high = (np.s_[:, :4], np.s_[:, 4:])
    first = scales[low] | scales[high] >> 4 << 6
    second = minima[low] | minima[high] >> 4 << 6
    third = scales[high] & 15 | (minima[high] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def _shifts(bits: Bits, n_rows: int, n_cols: int) -> npt.NDArray[np.uint8]:
    """By how many powers of two the scale of each block of 128 x 128 is above the least."""
    n_blocks = F8_SCALES.blocks((n_rows, n_cols))
    return (bits.take("shifts", math.prod(n_blocks)) % _N_SHIFTS).reshape(n_blocks)


def _e4m3(codes: CodeArray, shifts: npt.NDArray[np.uint8]) -> Rows:
    """Each block's numbers times four, halved as often as its scale is doubled."""
    result = _translated(codes, _E4M3)
    steps = np.repeat(shifts * np.uint8(_E4M3_STEP), F8_BLOCK, axis=1)[:, : codes.shape[1]]
    for row, step in zip(range(0, len(codes), F8_BLOCK), steps, strict=True):
        result[row : row + F8_BLOCK] -= step
    return result
