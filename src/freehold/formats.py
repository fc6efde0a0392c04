"""Weight formats: how many bytes hold how many numbers, and how to decode them with numpy.

Owns the table FORMATS, one entry per format: its spellings in GGUF and safetensors, the byte layout of one block, and
a decoder. The decoders are the oracle for the kernels: they compute in float32 in ggml's order of operations, so that
they are bit-equal to it. A new format is one decoder and one entry. Knows nothing of files or kernels.

Layouts and element orders follow ggml's block structures (ggml-common.h); in the names, `d` is a block's scale (`e` if
only its exponent is stored), `m` and `dmin` its minimum, `qs` the low bits of the quantised numbers, `qh` and `hmask`
their high bits. MXFP4 has a second layout, Hugging Face's, with the scales in an array of their own; F8_E4M3 has only
that, and ggml does not know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]
"""[rows, blocks] of a format's layout."""

_CHUNK_ELEMENTS = 1 << 18
"""Numbers decoded at once, so that the temporaries stay in the cache and small beside the result."""

MXFP4_BLOCK = 32
E8M0_NAN = 255
F8_BLOCK = 128
"""Rows, and columns, that share a scale in F8_E4M3 as DeepSeek publishes it."""

_TWICE_E2M1: Float32Array = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_HALF_OF_E8M0: Float32Array = np.ldexp(np.float32(1), np.arange(-128, 128, dtype=np.int32))  # the lowest are subnormal


def _f8_e4m3_table() -> Float32Array:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[127] = np.nan
    return np.concatenate([size, -size]).astype(np.float32)


_F8_E4M3 = _f8_e4m3_table()


@dataclass(frozen=True)
class Format:
    """How numbers are stored. ggml_type and safetensors_dtype are None where the container does not know the format."""

    name: str
    ggml_type: int | None
    safetensors_dtype: str | None
    block: int  # elements per block
    layout: np.dtype[Any] = field(repr=False)  # the bytes of one block
    decoder: Callable[[Blocks], Float32Array] = field(repr=False, compare=False)  # to [rows, blocks, block]

    @property
    def n_bytes(self) -> int:
        """Bytes per block."""
        return self.layout.itemsize

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of n_cols numbers; n_cols is a multiple of `block`."""
        assert n_cols % self.block == 0, f"a row of {n_cols} is not whole {self.name} blocks of {self.block}"
        return n_cols // self.block * self.n_bytes


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor as its file stores it. `data` is usually a read-only view of a mapped file, of any alignment.

    The bytes of a row are contiguous; rows may be any fixed distance apart, as where a file interleaves two matrices.
    With `scales`, an MXFP4 block is 16 bytes of `data`, byte b holding elements 2b (low nibble) and 2b + 1, and the
    matching byte of `scales`, its e8m0 scale; an F8_E4M3 number is a byte of `data`, times the row's scale of those 128
    columns. Without, `data` is whole blocks of `format.layout`.
    """

    format: Format
    shape: tuple[int, ...]  # row-major; the last axis is the input dimension
    data: UInt8Array  # [rows, row_bytes], rows of all leading axes; a tensor of fewer than two dimensions is one row
    scales: npt.NDArray[Any] | None = None  # [rows, blocks]

    def __post_init__(self) -> None:
        n_rows, n_cols = math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1
        row_bytes = self.format.row_bytes(n_cols)
        if self.scales is not None:
            assert self.format.name in _SCALES_APART, f"{self.format.name} keeps its scales in its blocks"
            kind, block = _SCALES_APART[self.format.name]
            n_blocks = -(-n_cols // block)
            row_bytes -= n_blocks if self.format.name == "MXFP4" else 0  # its blocks hold the scale otherwise
            assert self.scales.dtype == kind
            assert self.scales.shape == (n_rows, n_blocks), f"{self.scales.shape} is not {(n_rows, n_blocks)}"
        expected = (n_rows, row_bytes)
        assert self.data.dtype == np.uint8
        assert self.data.shape == expected, f"{self.data.shape} is not {expected}"

    @property
    def n_bytes(self) -> int:
        """Bytes as stored: of F8_E4M3, 128 rows share their scales."""
        shared = F8_BLOCK if self.format.name == "F8_E4M3" else 1
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes // shared)

    @staticmethod
    def of(numbers: Float32Array) -> QTensor:
        """An array [rows, cols] as a tensor."""
        return QTensor(FORMATS["F32"], numbers.shape, np.ascontiguousarray(numbers, "<f4").view(np.uint8))

    def expert(self, index: int) -> QTensor:
        """Matrix [rows, cols] number `index` of a tensor [experts, rows, cols]; a view."""
        n_experts, n_rows, n_cols = self.shape
        assert 0 <= index < n_experts
        flat = QTensor(self.format, (n_experts * n_rows, n_cols), self.data, self.scales)
        return flat.rows(index * n_rows, (index + 1) * n_rows)

    def rows(self, start: int, stop: int) -> QTensor:
        """Rows [start, stop) of a matrix; a view."""
        n_rows, n_cols = self.shape
        assert 0 <= start < stop <= n_rows
        scales = None if self.scales is None else self.scales[start:stop]
        return QTensor(self.format, (stop - start, n_cols), self.data[start:stop], scales)

    def transposed(self) -> QTensor:
        """A matrix with rows and columns exchanged; in float32 where its format has blocks that cannot be exchanged."""
        scales = self.scales
        if (
            self.format.name == "F8_E4M3"
            and scales is not None
            and self.shape[0] <= F8_BLOCK
            and (scales == scales[0]).all()
        ):
            scales = np.repeat(scales[0], F8_BLOCK)[: self.shape[1], None]  # one block of rows becomes one of columns
        elif self.format.block > 1 or scales is not None:
            return QTensor.of(np.ascontiguousarray(self.to_float32().T))
        numbers = np.ascontiguousarray(self.data.view(self.format.layout).T)
        return QTensor(self.format, self.shape[::-1], numbers.view(np.uint8), scales)

    def find_nan_scale(self) -> tuple[int, int] | None:
        """Row and block of the first MXFP4 scale that is e8m0's 255, which stands for no number; None if all are sound.

        Reads every scale, which for scales inside blocks means every page of the tensor.
        """
        if self.format.name != "MXFP4":
            return None
        scales = self.data.view(self.format.layout)["e"] if self.scales is None else self.scales  # [rows, blocks]
        if scales.size == 0 or scales.max() < E8M0_NAN:
            return None
        row, block = np.argwhere(scales == E8M0_NAN)[0].tolist()
        return row, block

    def to_float32(self) -> Float32Array:
        """The numbers, in `shape`. Always a copy."""
        return decode(self.format, self.data, self.scales).reshape(self.shape)


def decode(fmt: Format, data: UInt8Array, scales: npt.NDArray[Any] | None = None) -> Float32Array:
    """Decode rows of bytes [rows, row_bytes] to numbers [rows, cols]; bit-equal to ggml's own decoding, if it has one.

    data and scales as in `QTensor`.
    """
    n_rows = len(data)
    apart = scales is not None and fmt.name == "MXFP4"
    n_cols = data.shape[1] * 2 if apart else data.shape[1] // fmt.n_bytes * fmt.block
    out = np.empty((n_rows, n_cols), np.float32)
    step = max(1, _CHUNK_ELEMENTS // max(1, n_cols))
    with np.errstate(invalid="ignore", over="ignore"):  # a hostile scale may be inf or NaN; the numbers then are too
        for row in range(0, n_rows, step):
            rows = slice(row, row + step)
            if scales is None:
                numbers = fmt.decoder(data[rows].view(fmt.layout))
            elif fmt.name == "MXFP4":
                numbers = _decode_split_mxfp4(data[rows], scales[rows])
            else:
                numbers = fmt.decoder(data[rows]) * np.repeat(scales[rows], F8_BLOCK, axis=1)[:, :n_cols]
            out[rows] = numbers.reshape(out[rows].shape)
    return out


def _unpack(packed: UInt8Array, bits: int, run: int) -> UInt8Array:
    """Bytes [..., n] to numbers [..., n * 8 / bits].

    Each run of `run` bytes holds its numbers plane by plane: the lowest `bits` bits of all its bytes, then the next.
    """
    lead = packed.shape[:-1]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = packed.reshape(*lead, -1, 1, run) >> shifts  # [..., runs, 8 / bits, run]
    values: UInt8Array = (planes & np.uint8((1 << bits) - 1)).reshape(*lead, -1)
    return values


def _f32(values: npt.NDArray[Any]) -> Float32Array:
    return values.astype(np.float32)


def _groups(values: npt.NDArray[Any], n_groups: int) -> Float32Array:
    """[..., block] to float32 [..., n_groups, block / n_groups]: the sub-blocks that have a scale of their own."""
    return _f32(values).reshape(*values.shape[:-1], n_groups, -1)


def _decode_float(numbers: Blocks) -> Float32Array:
    return _f32(numbers)


def _decode_bf16(numbers: Blocks) -> Float32Array:
    return (numbers.astype(np.uint32) << 16).view(np.float32)


def _decode_f8_e4m3(numbers: Blocks) -> Float32Array:
    """Sign, four bits of exponent (bias 7, no infinities), three of mantissa; all ones is NaN."""
    return _F8_E4M3[numbers]


def _decode_q8_0(b: Blocks) -> Float32Array:
    return _f32(b["qs"]) * _f32(b["d"])[..., None]


def _decode_q4_0(b: Blocks) -> Float32Array:
    return _f32(b["d"])[..., None] * (_f32(_unpack(b["qs"], 4, 16)) - 8)


def _decode_q4_1(b: Blocks) -> Float32Array:
    return _f32(b["d"])[..., None] * _f32(_unpack(b["qs"], 4, 16)) + _f32(b["m"])[..., None]


def _five_bits(b: Blocks) -> UInt8Array:
    """Q5_0, Q5_1: bit i of the four bytes of qh is the fifth bit of element i."""
    return _unpack(b["qs"], 4, 16) | _unpack(b["qh"], 1, 1) << np.uint8(4)


def _decode_q5_0(b: Blocks) -> Float32Array:
    return _f32(b["d"])[..., None] * (_f32(_five_bits(b)) - 16)


def _decode_q5_1(b: Blocks) -> Float32Array:
    return _f32(b["d"])[..., None] * _f32(_five_bits(b)) + _f32(b["m"])[..., None]


def _decode_q2_k(b: Blocks) -> Float32Array:
    scale = _f32(b["d"])[..., None] * _f32(b["scales"] & np.uint8(15))  # [..., 16]
    minimum = _f32(b["dmin"])[..., None] * _f32(b["scales"] >> np.uint8(4))
    return scale[..., None] * _groups(_unpack(b["qs"], 2, 32), 16) - minimum[..., None]


def _decode_q3_k(b: Blocks) -> Float32Array:
    low, high = _unpack(b["scales"][..., :8], 4, 8), _unpack(b["scales"][..., 8:], 2, 4)
    scale = _f32(b["d"])[..., None] * (_f32(low | high << np.uint8(4)) - 32)  # [..., 16]
    q = _f32(_unpack(b["qs"], 2, 32) | _unpack(b["hmask"], 1, 32) << np.uint8(2)) - 4
    return scale[..., None] * _groups(q, 16)


def _scales_and_minima(b: Blocks) -> tuple[Float32Array, Float32Array]:
    """Q4_K, Q5_K: eight scales and eight minima of six bits in twelve bytes, multiplied out: two [..., 8, 1].

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low six bits. The low four bits of scales 4-7 are the
    low nibbles of bytes 8-11, those of minima 4-7 the high nibbles; their top two bits are the top bits of bytes 0-7.
    """
    first, second, third = (b["scales"][..., i : i + 4] for i in (0, 4, 8))
    six, four, top = np.uint8(0x3F), np.uint8(0x0F), np.uint8(0x30)
    scale = np.concatenate([first & six, third & four | first >> np.uint8(2) & top], axis=-1)
    minimum = np.concatenate([second & six, third >> np.uint8(4) | second >> np.uint8(2) & top], axis=-1)
    d, dmin = _f32(b["d"])[..., None], _f32(b["dmin"])[..., None]
    return (d * _f32(scale))[..., None], (dmin * _f32(minimum))[..., None]


def _decode_q4_k(b: Blocks) -> Float32Array:
    scale, minimum = _scales_and_minima(b)
    return scale * _groups(_unpack(b["qs"], 4, 32), 8) - minimum


def _decode_q5_k(b: Blocks) -> Float32Array:
    scale, minimum = _scales_and_minima(b)
    q = _unpack(b["qs"], 4, 32) | _unpack(b["qh"], 1, 32) << np.uint8(4)
    return scale * _groups(q, 8) - minimum


def _decode_q6_k(b: Blocks) -> Float32Array:
    scale = _f32(b["d"])[..., None] * _f32(b["scales"])  # [..., 16]
    q = _f32(_unpack(b["ql"], 4, 64) | _unpack(b["qh"], 2, 32) << np.uint8(4)) - 32
    return scale[..., None] * _groups(q, 16)


def _e2m1_times_e8m0(codes: UInt8Array, scales: UInt8Array) -> Float32Array:
    """Codes [..., 32] under scales [...]. As in ggml, the numbers are doubled, the scales halved, and -0 is 0."""
    return _HALF_OF_E8M0[scales][..., None] * _TWICE_E2M1[codes]


def _decode_mxfp4(b: Blocks) -> Float32Array:
    return _e2m1_times_e8m0(_unpack(b["qs"], 4, 16), b["e"])


def _decode_split_mxfp4(nibbles: UInt8Array, scales: UInt8Array) -> Float32Array:
    """Hugging Face's layout: nibbles [rows, blocks * 16] in the order of the elements, scales [rows, blocks]."""
    return _e2m1_times_e8m0(_unpack(nibbles.reshape(*scales.shape, MXFP4_BLOCK // 2), 4, 1), scales)


def _layout(**fields: str) -> np.dtype[Any]:
    """A packed little-endian structure; "16u1" is sixteen bytes."""
    return np.dtype(list(fields.items()))


def _table(*formats: Format) -> Mapping[str, Format]:
    return MappingProxyType({fmt.name: fmt for fmt in formats})


FORMATS: Mapping[str, Format] = _table(
    Format("F32", 0, "F32", 1, np.dtype("<f4"), _decode_float),
    Format("F16", 1, "F16", 1, np.dtype("<f2"), _decode_float),
    Format("BF16", 30, "BF16", 1, np.dtype("<u2"), _decode_bf16),
    Format("Q8_0", 8, None, 32, _layout(d="<f2", qs="32i1"), _decode_q8_0),
    Format("Q4_0", 2, None, 32, _layout(d="<f2", qs="16u1"), _decode_q4_0),
    Format("Q4_1", 3, None, 32, _layout(d="<f2", m="<f2", qs="16u1"), _decode_q4_1),
    Format("Q5_0", 6, None, 32, _layout(d="<f2", qh="4u1", qs="16u1"), _decode_q5_0),
    Format("Q5_1", 7, None, 32, _layout(d="<f2", m="<f2", qh="4u1", qs="16u1"), _decode_q5_1),
    Format("Q2_K", 10, None, 256, _layout(scales="16u1", qs="64u1", d="<f2", dmin="<f2"), _decode_q2_k),
    Format("Q3_K", 11, None, 256, _layout(hmask="32u1", qs="64u1", scales="12u1", d="<f2"), _decode_q3_k),
    Format("Q4_K", 12, None, 256, _layout(d="<f2", dmin="<f2", scales="12u1", qs="128u1"), _decode_q4_k),
    Format("Q5_K", 13, None, 256, _layout(d="<f2", dmin="<f2", scales="12u1", qh="32u1", qs="128u1"), _decode_q5_k),
    Format("Q6_K", 14, None, 256, _layout(ql="128u1", qh="64u1", scales="16i1", d="<f2"), _decode_q6_k),
    Format("F8_E4M3", None, "F8_E4M3", 1, np.dtype("u1"), _decode_f8_e4m3),
    Format("MXFP4", 39, None, MXFP4_BLOCK, _layout(e="u1", qs="16u1"), _decode_mxfp4),
)
"""Every format Freehold reads, by name."""

_SCALES_APART = {"MXFP4": (np.uint8, MXFP4_BLOCK), "F8_E4M3": (np.float32, F8_BLOCK)}
"""What scales in an array of their own are, and how many columns have one."""

BY_GGML_TYPE: Mapping[int, Format] = MappingProxyType(
    {fmt.ggml_type: fmt for fmt in FORMATS.values() if fmt.ggml_type is not None}
)
BY_SAFETENSORS_DTYPE: Mapping[str, Format] = MappingProxyType(
    {fmt.safetensors_dtype: fmt for fmt in FORMATS.values() if fmt.safetensors_dtype is not None}
)
