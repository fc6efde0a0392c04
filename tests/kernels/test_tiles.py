"""Products on matrix tiles (the amx level): what they round, and that nothing but a sequence's own length changes them.

They run where the processor has AMX, and anywhere in the emulated build that bench/emulated.sh makes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from freehold.core import Float32Array
from freehold.formats import QTensor
from freehold.kernels import FORMATS, NativeBackend, Norm, Ops, ReferenceBackend, available_isas
from freehold.models.loader import Backend
from kernel_programs import TILE_TOKENS, VECTOR_ISAS, batch, f32, product, random_tensor

pytestmark = pytest.mark.skipif("amx" not in available_isas(), reason="needs AMX or the emulated build")

N_ROWS = 37  # three panels: a pair and a single one, partly filled
N_COLS = 768  # two slabs of 10 tiles and one of 4


def bf16(values: npt.NDArray[np.floating]) -> Float32Array:
    """Rounded to the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def activations(n_tokens: int, n_cols: int = N_COLS) -> Float32Array:
    x = np.random.default_rng(n_tokens).standard_normal((n_tokens, n_cols)).astype(np.float32)
    x[:, 3] *= 40  # an outlier, as real activations have
    return x


def distance(got: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n_tokens", [16, 17, 31, 33, 64, 521])
def test_both_factors_are_rounded_to_bf16_and_nothing_else(name: str, n_tokens: int) -> None:
    weight, x = random_tensor(name, N_ROWS, N_COLS, seed=1), activations(n_tokens)
    values = weight.to_float32().astype(np.float64)
    got = product(NativeBackend(2, "amx"), x, weight)
    assert distance(got, bf16(x).astype(np.float64) @ bf16(values).astype(np.float64).T) < 1e-6
    assert distance(got, x @ values.T) < 3e-3


@pytest.mark.parametrize("n_rows", [557, 1157])  # the worker takes 4 (or 8 and 2) panels at a time, and 3 at the end
def test_many_panels_take_turns(n_rows: int) -> None:
    weight, x = random_tensor("Q8_0", n_rows, 416, seed=10), activations(50, 416)
    values = bf16(weight.to_float32()).astype(np.float64)
    got = product(NativeBackend(1, "amx"), x, weight)
    assert np.abs(got - bf16(x).astype(np.float64) @ values.T).max() < 1e-6 * np.linalg.norm(x) * np.linalg.norm(values)


@pytest.mark.parametrize("name", ["BF16", "Q4_1", "Q6_K"])
def test_place_and_threads_do_not_change_a_bit(name: str) -> None:
    weight, x = random_tensor(name, N_ROWS, N_COLS, seed=2), activations(521)
    whole = product(NativeBackend(1, "amx"), x, weight)
    for n_threads in (2, 3):
        assert np.array_equal(product(NativeBackend(n_threads, "amx"), x, weight), whole)
    for start, end in ((0, 16), (0, 33), (5, 36), (500, 521)):
        assert np.array_equal(product(NativeBackend(2, "amx"), x[start:end], weight), whole[start:end])


def test_a_sequence_is_computed_the_same_in_any_company() -> None:
    weight, x = random_tensor("Q4_0", N_ROWS, N_COLS, seed=3), activations(80)
    backend = NativeBackend(2, "amx")
    ops = Ops()
    h = ops.embed(backend.matrix(f32(x)))
    (y,) = ops.linear(h, [backend.matrix(weight)])
    ops.head(y, backend.matrix(f32(np.eye(N_ROWS))))
    program = backend.compile(ops)

    counts = [1, 20, 3, 15, 40, 1]
    ends = np.cumsum(counts)
    together = program.run(batch([(0, n) for n in counts]), program.new_kv(32))
    for end, n in zip(ends.tolist(), counts, strict=True):
        alone = program.run(batch([(0, n)], tokens=range(end - n, end)), program.new_kv(32))
        assert np.array_equal(together[end - n : end], alone), n
    last_rows = program.run(batch([(0, n) for n in counts], rows=(ends - 1).tolist()), program.new_kv(32))
    assert distance(last_rows, together[ends - 1]) < 3e-3  # a lone row goes through the head as decode does


def test_less_than_a_tile_of_tokens_is_computed_as_on_the_other_levels() -> None:
    weight, x = random_tensor("Q5_1", N_ROWS, N_COLS, seed=4), activations(TILE_TOKENS)
    level = VECTOR_ISAS[-1]
    for n in (TILE_TOKENS - 1, TILE_TOKENS):
        same = np.array_equal(
            product(NativeBackend(2, "amx"), x[:n], weight), product(NativeBackend(2, level), x[:n], weight)
        )
        assert same == (n < TILE_TOKENS)


def test_odd_widths_stay_off_the_tiles() -> None:
    weight, x = random_tensor("F16", 20, 33, seed=5), activations(40, 33)
    assert np.array_equal(product(NativeBackend(2, "amx"), x, weight), product(NativeBackend(2, "scalar"), x, weight))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_token(bad: float) -> None:
    x = activations(40, 64)
    x[17, 5] = bad
    got = product(NativeBackend(2, "amx"), x, random_tensor("Q4_1", 16, 64, seed=6))
    assert not np.isfinite(got[17]).any()
    assert np.isfinite(np.delete(got, 17, axis=0)).all()


@pytest.mark.parametrize("n_rows", [16, 37, 160, 165])
def test_norm_gate_bias_and_residual(n_rows: int) -> None:
    n_tokens = 50
    x = activations(n_tokens, n_rows)
    tensors: list[QTensor] = [random_tensor("BF16", n_rows, 96, seed=7), random_tensor("F16", 96, n_rows, seed=8)]
    tensors += [random_tensor(name, n_rows, 96, seed=9) for name in ("Q4_0", "Q8_0")]
    results = []
    backends: tuple[Backend, ...] = (NativeBackend(2, "amx"), ReferenceBackend())
    for backend in backends:
        first, second, gate, up = (backend.matrix(tensor) for tensor in tensors)
        ops = Ops()
        h = ops.embed(backend.matrix(f32(x)))
        (wide,) = ops.linear(h, [second], norm=Norm(np.linspace(0.5, 2, n_rows, dtype=np.float32), 1e-6))
        active = ops.gated_linear(wide, gate, up, norm=Norm(np.ones(96, np.float32), 1e-6))
        (wide,) = ops.linear(active, [second])
        h = ops.linear_add(wide, first, h, np.linspace(0, 1, n_rows, dtype=np.float32))
        ops.head(h, backend.matrix(f32(np.eye(n_rows))))
        program = backend.compile(ops)
        results.append(program.run(batch([(0, n_tokens)]), program.new_kv(2)))
    assert distance(results[0], results[1]) < 2e-2
