"""FP8 in blocks: numbers as the definition gives them, and no file whose scales do not fit is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.formats import FORMATS, QTensor
from freehold.weights import Checkpoint, open_checkpoint
from golden_models import GOLDEN
from gpt_oss_files import Stored, read_golden, save_directory

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CONFIG: dict[str, Any] = {"model_type": "deepseek_v3", "quantization_config": FP8}


def e4m3(code: int) -> float:
    """One number from the definition of the format (OCP 8-bit floating point, E4M3)."""
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


TABLE = np.array([e4m3(code) for code in range(256)])


def matrix(n_rows: int, n_cols: int, seed: int = 0) -> tuple[Stored, Stored, np.ndarray]:
    """A random matrix without NaN, its scales, and its numbers in float64."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 127, (n_rows, n_cols), np.uint8) | rng.integers(0, 2, (n_rows, n_cols), np.uint8) << 7
    scales = rng.uniform(1e-4, 1e-2, (-(-n_rows // 128), -(-n_cols // 128))).astype("<f4")
    numbers = TABLE[codes]
    for i in range(n_rows):
        for block in range(scales.shape[1]):
            numbers[i, block * 128 : block * 128 + 128] *= scales[i // 128, block]
    stored = Stored("F8_E4M3", codes.shape, codes.tobytes())
    return stored, Stored("F32", scales.shape, scales.tobytes()), numbers


def opened(directory: Path, tensors: dict[str, Stored], config: dict[str, Any] = CONFIG) -> Checkpoint:
    return open_checkpoint(save_directory(directory, tensors, config))


def test_every_code_is_what_the_definition_says() -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(QTensor(FORMATS["F8_E4M3"], (256,), codes).to_float32(), TABLE.astype(np.float32))
    assert np.nanmax(TABLE) == 448
    assert np.isnan(TABLE).sum() == 2


@pytest.mark.parametrize(
    "shape", [(1, 1), (128, 128), (129, 127), (576, 192), (96, 300), (257, 384)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_a_tensor_is_its_codes_times_its_blocks_scales(tmp_path: Path, shape: tuple[int, int]) -> None:
    weight, scales, numbers = matrix(*shape)
    with opened(tmp_path, {"w": weight, "w_scale_inv": scales}) as checkpoint:
        assert checkpoint.names == ("w",)
        assert checkpoint.shape("w") == shape
        tensor = checkpoint.get("w")
        np.testing.assert_allclose(tensor.to_float32(), numbers, rtol=1e-6)
        assert checkpoint.n_bytes == len(weight.data) + len(scales.data)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_rows_and_columns_keep_their_scales(n_rows: int, n_cols: int, data: st.DataObject) -> None:
    """Heads are cut out of a matrix wherever they begin, and transposed."""
    start = data.draw(st.integers(0, n_rows - 1))
    stop = data.draw(st.integers(start + 1, n_rows))
    weight, scales, numbers = matrix(n_rows, n_cols, seed=n_rows)
    by_row = np.repeat(np.frombuffer(scales.data, "<f4").reshape(scales.shape), 128, axis=0)[:n_rows]
    part = QTensor(FORMATS["F8_E4M3"], (n_rows, n_cols), weight.bytes(), by_row).rows(start, stop)
    np.testing.assert_allclose(part.to_float32(), numbers[start:stop], rtol=1e-6)
    np.testing.assert_allclose(part.transposed().to_float32(), numbers[start:stop].T, rtol=1e-6)


def test_the_golden_checkpoint() -> None:
    stored = read_golden(GOLDEN / "deepseek_v3_fp8")
    with open_checkpoint(GOLDEN / "deepseek_v3_fp8") as checkpoint:
        assert set(checkpoint.names) == {name for name in stored if not name.endswith("_scale_inv")}
        assert checkpoint.n_bytes == sum(len(tensor.data) for tensor in stored.values())
        for name in checkpoint.names:
            assert checkpoint.get(name).format.name == stored[name].dtype
        name = "model.layers.0.mlp.down_proj.weight"  # [192, 352]: partial blocks at both ends
        scales = np.frombuffer(stored[f"{name}_scale_inv"].data, "<f4").reshape(2, 3)
        expected = TABLE[stored[name].bytes()] * np.kron(scales, np.ones((128, 128)))[:192, :352]
        np.testing.assert_allclose(checkpoint.get(name).to_float32(), expected, rtol=1e-6)


def test_scales_in_bfloat16(tmp_path: Path) -> None:
    weight, _, _ = matrix(130, 128)
    scales = Stored("BF16", (2, 1), np.array([0x3F80, 0x4000], "<u2").tobytes())  # 1 and 2
    with opened(tmp_path, {"w": weight, "w_scale_inv": scales}) as checkpoint:
        expected = TABLE[weight.bytes()] * np.repeat([1, 2], [128, 2])[:, None]
        np.testing.assert_allclose(checkpoint.get("w").to_float32(), expected, rtol=1e-6)


WEIGHT, SCALES, _ = matrix(200, 130)
NORM = Stored("F32", (4,), bytes(16))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": WEIGHT}, "'w' has no scales beside it"),
        ({"w": WEIGHT, "w_scale_inv": Stored("F32", (2, 1), bytes(8))}, r"F32 \[2, 1\]; its matrix \[200, 130\]"),
        ({"w": WEIGHT, "w_scale_inv": Stored("F32", (4,), bytes(16))}, r"calls for F32 \[2, 2\]"),
        ({"w": WEIGHT, "w_scale_inv": Stored("F32", (200, 2), bytes(1600))}, r"calls for F32 \[2, 2\]"),
        ({"w": WEIGHT, "w_scale_inv": Stored("F64", (2, 2), bytes(32))}, "F64"),
        ({"w": WEIGHT, "w_scale_inv": Stored("U8", (2, 2), bytes(4))}, "U8"),
        (
            {"w": WEIGHT, "w_scale_inv": SCALES, "v_scale_inv": SCALES},
            "'v_scale_inv' holds the scales of a tensor that",
        ),
        ({"w": NORM, "w_scale_inv": SCALES}, "'w' is F32 and has scales beside it"),
        ({"w": Stored("F8_E4M3", (4,), bytes(4)), "w_scale_inv": SCALES}, "expected a matrix"),
        ({"w": Stored("F8_E4M3", (2, 2, 1), bytes(4)), "w_scale_inv": SCALES}, "expected a matrix"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Stored], message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as raised:
        opened(tmp_path, tensors)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"weight_block_size": [64, 64]}, r"weight_block_size \[64, 64\]"),
        ({"weight_block_size": None}, "weight_block_size None"),
        ({"weight_block_size": "128"}, "weight_block_size '128'"),
    ],
)
def test_other_kinds_of_fp8_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        opened(tmp_path, {"w": WEIGHT, "w_scale_inv": SCALES}, CONFIG | {"quantization_config": FP8 | change})


@pytest.mark.parametrize(
    "quantization", [None, {"quant_method": "compressed-tensors"}, {"quant_method": ["fp8"]}, "fp8"]
)
def test_fp8_without_its_scales_is_never_taken_for_numbers(tmp_path: Path, quantization: Any) -> None:
    """Scales per tensor or per row, as other tools write them, or a config that has lost its quantization_config."""
    tensors = {"w": WEIGHT, "w_scale": Stored("F32", (200, 1), bytes(800))}
    with pytest.raises(FreeholdError, match=r"F8_E4M3|quantization_config"):
        opened(tmp_path, tensors, {"model_type": "deepseek_v3", "quantization_config": quantization}).get("w")


def test_an_empty_matrix(tmp_path: Path) -> None:
    tensors = {"w": Stored("F8_E4M3", (0, 128), b""), "w_scale_inv": Stored("F32", (0, 1), b"")}
    with opened(tmp_path, tensors) as checkpoint:
        assert checkpoint.get("w").to_float32().shape == (0, 128)
