"""Every decoder against the reference implementation in PyPI `gguf`, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from freehold.formats import BY_GGML_TYPE, BY_SAFETENSORS_DTYPE, FORMATS, Format, QTensor, decode

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
GGML_FORMAT = pytest.mark.parametrize("fmt", BY_GGML_TYPE.values(), ids=lambda fmt: fmt.name)
QUANTISABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # those `gguf` can write
SCALE_FIELDS = ("d", "m", "dmin")


def random_blocks(fmt: Format, rows: int, n_blocks: int, seed: int) -> np.ndarray:
    """Random bytes [rows, row_bytes] whose scales are finite."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, n_blocks * fmt.n_bytes), dtype=np.uint8)
    blocks = data.view(fmt.layout)
    for name in fmt.layout.names or ():
        if name in SCALE_FIELDS:
            blocks[name] = rng.standard_normal(blocks.shape).astype(np.float16)
    if fmt.block == 1:
        values = (rng.standard_normal(blocks.shape) * 100).astype(np.float32)
        blocks[...] = values.view(np.uint32) >> 16 if fmt.name == "BF16" else values
    return data


def assert_same_bits(ours: np.ndarray, reference: np.ndarray) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == reference.shape
    np.testing.assert_array_equal(ours.view(np.uint32), reference.astype(np.float32).view(np.uint32))


@GGML_FORMAT
def test_sizes_and_ids_are_those_of_ggml(fmt: Format) -> None:
    kind = gguf.GGMLQuantizationType[fmt.name]
    assert (fmt.block, fmt.n_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert fmt.ggml_type == int(kind)
    assert BY_GGML_TYPE[int(kind)] is fmt
    assert fmt.row_bytes(fmt.block * 3) == fmt.n_bytes * 3


def test_safetensors_spellings() -> None:
    assert set(BY_SAFETENSORS_DTYPE) == {"F32", "F16", "BF16", "F8_E4M3"}
    assert set(FORMATS.values()) == {*BY_SAFETENSORS_DTYPE.values(), *BY_GGML_TYPE.values()}


def test_f8_e4m3_by_its_definition() -> None:
    """Sign, exponent and mantissa one number at a time; 448 is the largest, 2^-9 the smallest, all ones no number."""
    decoded = decode(FORMATS["F8_E4M3"], np.arange(256, dtype=np.uint8)[None])[0]
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        if code & 127 == 127:
            assert np.isnan(decoded[code])
        else:
            assert decoded[code] == (-size if code & 128 else size)
    assert (np.nanmax(decoded), decoded[1]) == (448, 2**-9)


def test_f8_e4m3_times_the_scales_of_its_columns() -> None:
    codes = np.random.default_rng(0).integers(0, 127, (3, 200), np.uint8)
    scales = np.array([[1, 2], [3, 5], [7, 0.5]], np.float32)
    tensor = QTensor(FORMATS["F8_E4M3"], (3, 200), codes, scales)
    expected = decode(FORMATS["F8_E4M3"], codes)
    expected[:, :128] *= scales[:, :1]
    expected[:, 128:] *= scales[:, 1:]
    assert_same_bits(tensor.to_float32(), expected)
    assert_same_bits(tensor.rows(1, 3).to_float32(), expected[1:])
    assert_same_bits(tensor.transposed().to_float32(), expected.T.copy())


def test_one_block_of_rows_is_transposed_as_it_is() -> None:
    codes = np.random.default_rng(0).integers(0, 127, (96, 300), np.uint8)
    scales = np.broadcast_to(np.array([1, 2, 0.5], np.float32), (96, 3))
    tensor = QTensor(FORMATS["F8_E4M3"], (96, 300), codes, scales)
    assert tensor.transposed().format.name == "F8_E4M3"
    assert_same_bits(tensor.transposed().to_float32(), tensor.to_float32().T.copy())


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_transposing_twice_changes_nothing(name: str) -> None:
    data = random_blocks(FORMATS[name], rows=96, n_blocks=64 // FORMATS[name].block, seed=3)
    tensor = QTensor(FORMATS[name], (96, 64), data)
    assert tensor.transposed().shape == (64, 96)
    assert_same_bits(tensor.transposed().to_float32(), tensor.to_float32().T.copy())
    assert_same_bits(tensor.transposed().transposed().to_float32(), tensor.to_float32())


@pytest.mark.filterwarnings("ignore:overflow")  # in `gguf`, from scales too large
@GGML_FORMAT
@pytest.mark.parametrize("seed", range(3))
def test_decodes_random_blocks_like_gguf(fmt: Format, seed: int) -> None:
    data = random_blocks(fmt, rows=33, n_blocks=5, seed=seed)
    assert_same_bits(decode(fmt, data), dequantize(data, gguf.GGMLQuantizationType[fmt.name]))


@pytest.mark.parametrize("name", QUANTISABLE)
def test_decodes_what_gguf_quantised(name: str) -> None:
    numbers = np.random.default_rng(5).standard_normal((7, 512)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    data = quantize(numbers, kind).view(np.uint8)
    decoded = decode(FORMATS[name], data)
    assert_same_bits(decoded, dequantize(data, kind))
    assert np.abs(decoded - numbers).max() < 0.5  # the right numbers in the right order, not only the same ones


@EVERY_FORMAT
def test_chunks_do_not_show(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(fmt, rows=9, n_blocks=4, seed=1)
    whole = decode(fmt, data)
    monkeypatch.setattr("freehold.formats._CHUNK_ELEMENTS", fmt.block * 4 * 2)
    assert_same_bits(decode(fmt, data), whole)


@EVERY_FORMAT
def test_reads_unaligned_bytes(fmt: Format) -> None:
    data = random_blocks(fmt, rows=2, n_blocks=3, seed=2)
    shifted = np.empty(data.size + 1, np.uint8)[1:].reshape(data.shape)
    shifted[...] = data
    assert_same_bits(decode(fmt, shifted), decode(fmt, data))


@pytest.mark.filterwarnings("error")
@EVERY_FORMAT
def test_infinite_scales_are_quiet(fmt: Format) -> None:
    decode(fmt, np.full((1, fmt.n_bytes), 0x7C, np.uint8))
    decode(fmt, np.full((1, fmt.n_bytes), 0xFF, np.uint8))


def split_mxfp4(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ggml's blocks [rows, n * 17] in Hugging Face's layout: nibbles [rows, n * 16] in pairs, scales [rows, n]."""
    parts = blocks.reshape(len(blocks), -1, 17)
    codes = np.concatenate([parts[..., 1:] & 15, parts[..., 1:] >> 4], axis=-1)  # [rows, n, 32]
    nibbles = codes[..., 0::2] | codes[..., 1::2] << 4
    return nibbles.reshape(len(blocks), -1), np.ascontiguousarray(parts[..., 0])


@pytest.mark.filterwarnings("ignore:overflow")  # in `gguf`, from scales too large
def test_both_mxfp4_layouts_hold_the_same_numbers() -> None:
    blocks = random_blocks(FORMATS["MXFP4"], rows=50, n_blocks=6, seed=4)
    blocks[:, ::17][:, :3] = np.arange(150).reshape(50, 3) % 256  # with the subnormal scales 0 and 1
    data, scales = split_mxfp4(blocks)
    tensor = QTensor(FORMATS["MXFP4"], (50, 192), data, scales)
    assert_same_bits(tensor.to_float32(), dequantize(blocks, gguf.GGMLQuantizationType.MXFP4))
    assert tensor.n_bytes == blocks.nbytes


def test_mxfp4_values_by_hand() -> None:
    data = np.zeros((1, 16), np.uint8)
    data[0, :3] = [0x21, 0x73, 0xF9]
    scales = np.array([[128]], np.uint8)
    first = QTensor(FORMATS["MXFP4"], (1, 32), data, scales).to_float32()[0, :6]
    np.testing.assert_array_equal(first, [1, 2, 3, 12, -1, -12])  # 0.5 1 1.5 6 -0.5 -6, times 2
    data[0, :3] = 0
    np.testing.assert_array_equal(QTensor(FORMATS["MXFP4"], (1, 32), data, scales).to_float32(), np.zeros((1, 32)))


@pytest.mark.parametrize("name", ["MXFP4", "BF16", "Q4_0"])
def test_rows_may_lie_apart(name: str) -> None:
    fmt = FORMATS[name]
    data = random_blocks(fmt, rows=24, n_blocks=64 // fmt.block, seed=6)
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(4, 20, 3)):
        part = data[rows]
        tensor = QTensor(fmt, (len(part), 64), part)
        np.testing.assert_array_equal(tensor.to_float32(), decode(fmt, data)[rows])
    nibbles, scales = split_mxfp4(random_blocks(FORMATS["MXFP4"], rows=24, n_blocks=2, seed=7))
    whole = decode(FORMATS["MXFP4"], nibbles, scales)
    odd = QTensor(FORMATS["MXFP4"], (3, 4, 64), nibbles[1::2], scales[1::2])
    np.testing.assert_array_equal(odd.to_float32().reshape(12, 64), whole[1::2])


def test_an_expert_is_a_view() -> None:
    nibbles, scales = split_mxfp4(random_blocks(FORMATS["MXFP4"], rows=24, n_blocks=2, seed=8))
    tensor = QTensor(FORMATS["MXFP4"], (3, 4, 64), nibbles[0::2], scales[0::2])
    whole = tensor.to_float32()
    for index in range(3):
        expert = tensor.expert(index)
        assert expert.shape == (4, 64)
        assert np.shares_memory(expert.data, nibbles)
        assert expert.scales is not None
        assert np.shares_memory(expert.scales, scales)
        np.testing.assert_array_equal(expert.to_float32(), whole[index])
    dense = QTensor(FORMATS["F32"], (2, 1, 2), np.arange(4, dtype=np.float32).view(np.uint8).reshape(2, 8))
    np.testing.assert_array_equal(dense.expert(1).to_float32(), [[2, 3]])
    with pytest.raises(AssertionError):
        tensor.expert(3)


def test_finds_the_scale_that_is_no_number() -> None:
    blocks = random_blocks(FORMATS["MXFP4"], rows=6, n_blocks=2, seed=9)
    blocks[:, ::17] = 254
    nibbles, scales = split_mxfp4(blocks)
    assert QTensor(FORMATS["MXFP4"], (6, 64), blocks).find_nan_scale() is None
    assert QTensor(FORMATS["MXFP4"], (6, 64), nibbles, scales).find_nan_scale() is None
    blocks[4, 17] = scales[4, 1] = 255
    assert QTensor(FORMATS["MXFP4"], (6, 64), blocks).find_nan_scale() == (4, 1)
    assert QTensor(FORMATS["MXFP4"], (3, 64), nibbles[0::2], scales[0::2]).find_nan_scale() == (2, 1)
    assert QTensor(FORMATS["MXFP4"], (3, 64), nibbles[1::2], scales[1::2]).find_nan_scale() is None
    assert QTensor(FORMATS["MXFP4"], (0, 64), nibbles[:0], scales[:0]).find_nan_scale() is None


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3), (), (0,), (0, 4), (3, 0)])
def test_tensor_shapes(shape: tuple[int, ...]) -> None:
    numbers = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1]))
    data = np.frombuffer(numbers.tobytes(), np.uint8).reshape(rows, columns * 4)
    tensor = QTensor(FORMATS["F32"], shape, data)
    np.testing.assert_array_equal(tensor.to_float32(), numbers)
    assert tensor.to_float32().shape == shape
    assert tensor.n_bytes == numbers.nbytes


def test_a_tensor_of_the_wrong_size_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        QTensor(FORMATS["F32"], (2, 3), np.zeros((2, 8), np.uint8))
    with pytest.raises(AssertionError):
        FORMATS["Q4_0"].row_bytes(33)
    nibbles, scales = np.zeros((2, 32), np.uint8), np.zeros((2, 2), np.uint8)
    with pytest.raises(AssertionError):
        QTensor(FORMATS["MXFP4"], (2, 64), nibbles, scales[:, :1])
    with pytest.raises(AssertionError):
        QTensor(FORMATS["MXFP4"], (2, 64), nibbles)
    with pytest.raises(AssertionError, match="keeps its scales in its blocks"):
        QTensor(FORMATS["Q8_0"], (2, 64), nibbles, scales)
