"""Every decoder against the reference implementation in PyPI `gguf`, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from freehold.formats import BY_GGML_TYPE, BY_SAFETENSORS_DTYPE, FORMATS, Format, QTensor, decode

EVERY_FORMAT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
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


@EVERY_FORMAT
def test_sizes_and_ids_are_those_of_ggml(fmt: Format) -> None:
    kind = gguf.GGMLQuantizationType[fmt.name]
    assert (fmt.block, fmt.n_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert fmt.ggml_type == int(kind)
    assert BY_GGML_TYPE[int(kind)] is fmt
    assert fmt.row_bytes(fmt.block * 3) == fmt.n_bytes * 3


def test_safetensors_spellings() -> None:
    assert set(BY_SAFETENSORS_DTYPE) == {"F32", "F16", "BF16"}


@EVERY_FORMAT
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
