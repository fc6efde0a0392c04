"""Rounding while packing: what Q8_0, Q4_1 and Q4_K lose, what they must keep, and what cannot be rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from freehold.core import Float32Array
from freehold.errors import ModelFileError
from freehold.formats import FORMATS, QTensor
from freehold.kernels import NativeBackend, _kernels, available_isas, packed_bytes, unwrap

ISAS = available_isas()


def stored(values: Float32Array, name: str = "F32") -> QTensor:
    """A matrix in a file's format, rounded to it."""
    data = np.ascontiguousarray(values, np.float32)
    if name == "BF16":
        data = (data.view(np.uint32) >> 16).astype(np.uint16)  # towards zero, which is as good here
    elif name == "F16":
        data = data.astype(np.float16)
    return QTensor(FORMATS[name], values.shape, data.view(np.uint8).reshape(len(values), -1))


def packed(tensor: QTensor, to: str, isa: str = ISAS[-1], n_threads: int = 1) -> _kernels.Packed:
    backend = NativeBackend(n_threads, isa)
    matrix = backend.matrix(tensor, to, "tensor 'w'")
    backend.pack_waiting()
    return matrix


def rounded(tensor: QTensor, to: str) -> Float32Array:
    """What the kernels read of a matrix rounded to `to`."""
    matrix = packed(tensor, to)
    out = np.empty(tensor.shape, np.float32)
    for row in range(len(out)):
        _kernels.unpack_row(matrix, ISAS[-1], row, out[row])
    return out


def numbers(kind: str, n_rows: int = 40, n_cols: int = 512) -> Float32Array:
    rng, shape = np.random.default_rng(7), (n_rows, n_cols)
    drawn = {
        "normal": rng.standard_normal(shape),
        "heavy": rng.standard_t(4, shape),
        "even": rng.uniform(-1, 1, shape),
        "apart": rng.standard_normal(shape) * np.exp(rng.standard_normal((n_rows, n_cols // 32)).repeat(32, axis=1)),
        "positive": rng.uniform(1, 2, shape),
    }
    return (0.02 * drawn[kind]).astype(np.float32)


KINDS = ("normal", "heavy", "even", "apart", "positive")


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_are_the_nearest_multiples_of_their_scale(kind: str, source: str) -> None:
    tensor = stored(numbers(kind), source)
    before = tensor.to_float32().reshape(-1, 32)
    scale = (np.abs(before).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    after = rounded(tensor, "Q8_0").reshape(-1, 32)
    assert (np.abs(after - before) <= scale * 0.5001 + np.abs(before).max(1, keepdims=True) * 2**-11).all()
    codes = after / scale
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["Q4_1", "Q4_K"])
def test_four_bits_lose_no_more_than_the_usual_method(kind: str, source: str, to: str) -> None:
    tensor = stored(numbers(kind), source)
    before = tensor.to_float32()
    ours = ((rounded(tensor, to) - before) ** 2).mean()
    assert ours < ((usual_q4_k(before) - before) ** 2).mean()


def usual_q4_k(x: Float32Array) -> Float32Array:
    """Q4_K by ggml's recipe: 21 candidate scales per group, fitted by least squares with weights rms + |x|."""
    g = x.reshape(-1, 32)
    w = np.sqrt((g * g).mean(1, keepdims=True)) + np.abs(g)
    lowest = np.minimum(g.min(1, keepdims=True), 0)
    reach = g.max(1, keepdims=True) - lowest
    sum_w, sum_x = w.sum(1, keepdims=True), (w * g).sum(1, keepdims=True)
    scale, offset, best = reach / 15, lowest, np.full_like(lowest, np.inf)
    for step in np.linspace(-1, 1, 21):
        q = np.clip(np.rint((15 + step) / reach * (g - lowest)), 0, 15)
        sum_q, sum_qq, sum_qx = ((w * term).sum(1, keepdims=True) for term in (q, q * q, q * g))
        determinant = sum_w * sum_qq - sum_q**2
        a, b = (sum_w * sum_qx - sum_x * sum_q) / determinant, (sum_qq * sum_x - sum_q * sum_qx) / determinant
        a, b = np.where(b > 0, sum_qx / sum_qq, a), np.minimum(b, 0)
        error = (w * (a * q + b - g) ** 2).sum(1, keepdims=True)
        scale, offset, best = (
            np.where(error < best, new, old) for new, old in ((a, scale), (b, offset), (error, best))
        )
    units = [np.maximum(part.reshape(-1, 8).max(1, keepdims=True), 1e-30) / 63 for part in (scale, -offset)]
    steps = [np.rint(part.reshape(-1, 8) / unit) for part, unit in zip((scale, -offset), units, strict=True)]
    a, m = ((np.float16(u).astype(np.float32) * s).reshape(-1, 1) for u, s in zip(units, steps, strict=True))
    result: Float32Array = (a * np.clip(np.rint((g + m) / np.maximum(a, 1e-30)), 0, 15) - m).reshape(x.shape)
    return result


@pytest.mark.parametrize("to", ["Q4_1", "Q4_K"])
def test_four_bits_come_close_to_the_best_there_is(to: str) -> None:
    """Against every scale and offset of a fine grid. A row has its group eight times: so six bits of the scale,
    and of the minimum, cost nothing.
    """
    groups = np.random.default_rng(3).standard_normal((48, 32)).astype(np.float32)
    found = rounded(stored(np.tile(groups, (1, 8))), to)[:, :32]
    ours, best = ((found - groups) ** 2).sum(-1), np.array([best_error(group) for group in groups])
    assert (ours <= 1.3 * best).all()
    assert ours.mean() <= 1.04 * best.mean()


def best_error(group: Float32Array) -> float:
    reach = group.max() - group.min()
    scales = np.linspace(0.75, 1.05, 61)[:, None, None] * reach / 15
    offsets = group.min() + np.linspace(-0.1, 0.25, 71)[None, :, None] * reach
    codes = np.clip(np.rint((group - offsets) / scales), 0, 15)
    return float(((scales * codes + offsets - group) ** 2).sum(-1).min())


def test_eight_bits_keep_what_eight_bits_can_say() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (20, 8, 32))
    codes[..., 5] = 127
    values = (codes * rng.uniform(1e-3, 1, (20, 8, 1)).astype(np.float16)).astype(np.float32).reshape(20, -1)
    np.testing.assert_array_equal(rounded(stored(values), "Q8_0"), values)


@pytest.mark.parametrize("to", ["Q4_1", "Q4_K"])
def test_four_bits_keep_what_four_bits_can_say(to: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (20, 8, 32)).astype(np.float32)
    codes[..., 3], codes[..., 20] = 0, 15
    scales, minima = rng.integers(20, 64, (2, 20, 8, 1)).astype(np.float32)
    scales[:, 2], minima[:, 6] = 63, 63
    d, dmin = rng.uniform(1e-3, 1e-2, (2, 20, 1, 1)).astype(np.float16).astype(np.float32)
    values = (d * scales * codes - dmin * minima).reshape(20, -1)
    tolerance = (1e-6 if to == "Q4_K" else 1e-3) * np.abs(values).max()  # Q4_1 rounds each product to f16
    np.testing.assert_allclose(rounded(stored(values), to), values, rtol=0, atol=tolerance * np.abs(values).max())


@pytest.mark.parametrize("to", ["Q8_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e-5, -6e4])
def test_rows_of_one_number(to: str, value: float) -> None:
    values = np.full((3, 256), value, np.float32)
    np.testing.assert_allclose(rounded(stored(values), to), values, rtol=2e-3)


@given(
    arrays.arrays(
        np.float32, (2, 256), elements=st.floats(-65504, 65504, width=32) | st.floats(-1, 1, width=32), fill=st.just(0)
    ),
    st.sampled_from(["Q8_0", "Q4_1", "Q4_K"]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_finite_stays_near(values: Float32Array, to: str) -> None:
    """By the span that shares a scale, and by its smallest: f16 has nothing below 6e-8."""
    found = rounded(stored(values), to)
    spans = np.abs(values).reshape(2, -1, FORMATS[to].block).max(-1)
    error = np.abs(found - values).reshape(2, -1, FORMATS[to].block).max(-1)
    assert (error <= spans * (1 / 200 if to == "Q8_0" else 1 / 3) + 8e-6).all()


@pytest.mark.parametrize("to", ["Q8_0", "Q4_1", "Q4_K"])
def test_levels_and_threads_give_the_same_bytes(to: str) -> None:
    tensor = stored(numbers("apart", 2100, 1024))  # large enough to be packed by all threads
    data = {
        unwrap(packed(tensor, to, isa, n_threads))[1].tobytes()
        for isa, n_threads in [(isa, 1) for isa in ISAS] + [(ISAS[-1], 3)]
    }
    assert len(data) == 1


@pytest.mark.parametrize(("to", "n_cols"), [("Q8_0", 96), ("Q4_1", 96), ("Q4_K", 768)])
@pytest.mark.parametrize("n_rows", [1, 16, 33])
def test_sizes_are_known_beforehand(to: str, n_cols: int, n_rows: int) -> None:
    tensor = stored(numbers("normal", n_rows, n_cols), "BF16")
    matrix = packed(tensor, to)
    assert unwrap(matrix)[0] == to
    assert matrix.n_bytes == packed_bytes(to, n_rows, n_cols)
    assert np.abs(rounded(tensor, to) - tensor.to_float32()).max() < 0.02


def eight_bit_floats(n_rows: int, n_cols: int) -> QTensor:
    """Every finite code, in blocks of 128 columns with scales of their own, the last one cut off."""
    rng = np.random.default_rng(5)
    codes = rng.choice(np.array([code for code in range(256) if code & 127 != 127], np.uint8), (n_rows, n_cols))
    scales = rng.uniform(1e-3, 1e-2, (n_rows, -(-n_cols // 128))).astype(np.float32)
    return QTensor(FORMATS["F8_E4M3"], codes.shape, codes, scales)


@pytest.mark.parametrize("to", ["Q8_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("apart", [True, False])
def test_eight_bit_floats_are_rounded_as_the_numbers_they_stand_for(to: str, apart: bool) -> None:
    tensor = eight_bit_floats(21, 256 if to == "Q4_K" else 288)
    if not apart:
        tensor = QTensor(tensor.format, tensor.shape, tensor.data)
    ours, expected = (unwrap(packed(one, to))[1] for one in (tensor, stored(tensor.to_float32())))
    np.testing.assert_array_equal(ours, expected)


def test_eight_bit_floats_that_are_none_are_refused() -> None:
    tensor = eight_bit_floats(40, 256)
    tensor.data[39, 255] = 0xFF
    with pytest.raises(ModelFileError, match="cannot be rounded"):
        packed(tensor, "Q8_0")


@pytest.mark.parametrize("to", ["Q8_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize("n_rows", [20, 9000])  # packed later, and at once
@pytest.mark.parametrize(("source", "value"), [("F32", np.nan), ("BF16", np.inf), ("F16", -np.inf), ("F32", 3e38)])
def test_what_cannot_be_rounded_is_refused_by_name(to: str, n_rows: int, source: str, value: float) -> None:
    values = np.full((n_rows, 512), 0.5, np.float32)
    values[-1, 300] = value
    with np.errstate(over="ignore"):
        tensor = stored(values, source)
    with pytest.raises(ModelFileError, match="tensor 'w' holds a number that cannot be rounded"):
        packed(tensor, to)
