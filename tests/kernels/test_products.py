"""Matrix products of every format at every level, against numpy and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.errors import KernelError, UnsupportedError
from freehold.formats import FORMATS, Format, QTensor
from freehold.kernels import FORMATS as KERNEL_FORMATS
from freehold.kernels import NativeBackend, Norm, Ops, ReferenceBackend, _kernels, available_isas, isa
from freehold.models.loader import Backend
from kernel_programs import TILE_TOKENS, VECTOR_ISAS, batch, f32, product, random_tensor

ISAS = available_isas()
BYTE_FORMATS = [name for name in KERNEL_FORMATS if (name[0] == "Q" and name != "Q8_0") or name == "MXFP4"]
"""Whose codes can be multiplied with activations of 8 bits."""

N_ROWS = 37  # not a whole number of panels


def activations(n_tokens: int, n_cols: int) -> np.ndarray:
    rng = np.random.default_rng(n_tokens)
    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
    x[:, 3] *= 40  # an outlier, as real activations have
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", KERNEL_FORMATS)
@pytest.mark.parametrize("n_tokens", [1, 3, 4, 9])
def test_product_equals_numpy(name: str, isa: str, n_tokens: int) -> None:
    weight = random_tensor(name, N_ROWS, 768, seed=1)
    x = activations(n_tokens, 768)
    expected = x.astype(np.float64) @ weight.to_float32().astype(np.float64).T
    got = product(NativeBackend(2, isa), x, weight)
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight.to_float32(), axis=1)
    assert np.abs(got - expected).max() <= 2e-5 * size.max()


def in_bytes(x: np.ndarray) -> np.ndarray:
    """Activations [tokens, columns] as 8-bit codes hold them: a scale per 32 columns, its largest number 127."""
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    numbers: np.ndarray = np.rint(blocks / scale).astype(np.float64) * scale
    return numbers.reshape(x.shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", BYTE_FORMATS)
@pytest.mark.parametrize("n_tokens", [1, 3, 4, 9])
def test_product_of_bytes_equals_numpy(name: str, isa: str, n_tokens: int) -> None:
    weight = random_tensor(name, N_ROWS, 768, seed=1)
    x = activations(n_tokens, 768)
    expected = in_bytes(x) @ weight.to_float32().astype(np.float64).T
    got = product(NativeBackend(2, isa, byte_activations=True), x, weight)
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()
    assert not np.array_equal(got, product(NativeBackend(2, isa), x, weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", BYTE_FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_the_largest_bytes_do_not_overflow(name: str, isa: str, sign: int) -> None:
    weight = random_tensor(name, 16, 512, seed=5)
    codes = weight.data.view(weight.format.layout)
    for field in codes.dtype.names or ():
        if codes.dtype[field].base == np.uint8 and field not in ("scales", "e"):
            codes[field] = 0x77 if name == "MXFP4" else 0xFF
    x = np.full((5, 512), sign, np.float32)
    expected = x.astype(np.float64) @ weight.to_float32().astype(np.float64).T
    got = product(NativeBackend(1, isa, byte_activations=True), x, weight)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("byte_activations", [False, True])
@pytest.mark.parametrize("name", KERNEL_FORMATS)
def test_levels_threads_and_company_do_not_change_a_bit(name: str, byte_activations: bool) -> None:
    weight = random_tensor(name, N_ROWS, 1024, seed=2)
    x = activations(521, 1024)

    def products(n_threads: int, n: int, level: str | None = None) -> np.ndarray:
        return product(NativeBackend(n_threads, level, byte_activations=byte_activations), x[:n], weight)

    whole = products(1, 521, VECTOR_ISAS[-1])
    for level in ISAS:
        n = 521 if level == VECTOR_ISAS[-1] else 6
        for n_threads in (2, 3):
            assert np.array_equal(products(n_threads, n, level), whole[:n]), (level, n_threads)
    for n in (1, 2, 3, 4, 5, TILE_TOKENS - 1):
        assert np.array_equal(products(2, n), whole[:n])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", KERNEL_FORMATS)
def test_packed_rows_are_the_files_numbers(name: str, isa: str) -> None:
    weight = random_tensor(name, 19, 512, seed=3)
    backend = NativeBackend(1, isa)
    packed = backend.matrix(weight)
    backend.pack_waiting()
    row = np.empty(512, np.float32)
    for r in range(19):
        _kernels.unpack_row(packed, isa, r, row)
        assert np.array_equal(row, weight.to_float32()[r])


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_cols", [1, 7, 33])
def test_odd_widths_of_float_formats(name: str, n_cols: int) -> None:
    weight = random_tensor(name, 5, n_cols, seed=4)
    x = activations(3, max(n_cols, 4))[:, :n_cols]
    norm = Norm(np.linspace(0.5, 2, n_cols).astype(np.float32), 1e-5)
    np.testing.assert_allclose(
        product(NativeBackend(2), x, weight, norm), product(ReferenceBackend(), x, weight, norm), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(isa: str, bad: float) -> None:
    x = activations(6, 64)
    x[2, 5] = bad
    got = product(NativeBackend(2, isa), x, random_tensor("Q4_1", 16, 64, seed=5))
    assert not np.isfinite(got[2]).any()
    assert np.isfinite(got[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_gate_activation_and_residual(isa: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((7, 64)).astype(np.float32)
    gate, up, down = (random_tensor("Q8_0", n, k, seed=s) for n, k, s in ((48 + 16, 64, 7), (64, 64, 8), (64, 64, 9)))
    results = []
    backends: tuple[Backend, ...] = (NativeBackend(2, isa), ReferenceBackend())
    for backend in backends:
        ops = Ops()
        h = ops.embed(backend.matrix(f32(x)))
        active = ops.gated_linear(h, backend.matrix(gate), backend.matrix(up), norm=Norm(np.ones(64, np.float32), 1e-6))
        bias = np.linspace(0, 1, 64, dtype=np.float32)
        h = ops.linear_add(active, backend.matrix(down), h, bias)
        ops.head(h, backend.matrix(f32(np.eye(64))))
        program = backend.compile(ops)
        results.append(program.run(batch([(0, 7)]), program.new_kv(1)))
    assert np.linalg.norm(results[0] - results[1]) <= 2e-4 * np.linalg.norm(results[1])


def test_formats_without_kernels_are_refused_by_name() -> None:
    strange = Format("Q9_9", None, None, 1, FORMATS["F32"].layout, FORMATS["F32"].decoder)
    with pytest.raises(UnsupportedError, match="Q9_9"):
        NativeBackend(1).matrix(QTensor(strange, (1, 1), np.zeros((1, 4), np.uint8)))


def test_a_level_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_ISA", "avx9000")
    with pytest.raises(KernelError, match=r"avx9000.*scalar"):
        isa()
    monkeypatch.setenv("FREEHOLD_ISA", "scalar")
    assert isa() == "scalar"
