"""Mixtures of experts: routing, grouped products and their sum, against the oracle and against themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold.core import Float32Array
from freehold.formats import FORMATS, QTensor
from freehold.kernels import Clamp, Gating, NativeBackend, Norm, Ops, ReferenceBackend, _kernels, available_isas
from freehold.models.loader import Backend
from kernel_programs import VECTOR_ISAS, batch, f32, random_tensor

HIDDEN, INNER, N_EXPERTS, CHOSEN = 64, 96, 8, 3
ISAS = available_isas()


def mixture(
    backend: Backend, x: Float32Array, scores: Float32Array, clamp: Clamp | None = None, gating: Gating | None = None
) -> Any:
    """A program that adds to token i's row x[i] the mixture of experts that scores[i] choose."""
    rng = np.random.default_rng(5)

    def experts(n_rows: int, n_cols: int, seed: int) -> list[Any]:
        return [backend.matrix(random_tensor("MXFP4", n_rows, n_cols, seed + e)) for e in range(N_EXPERTS)]

    def biases(n_rows: int) -> Float32Array:
        return rng.standard_normal((N_EXPERTS, n_rows)).astype(np.float32)

    ops = Ops()
    # Each token's row holds x and its scores; a product with a part of the identity takes them apart.
    both = ops.embed(backend.matrix(f32(np.concatenate([x, scores], axis=1))))
    eye = np.eye(HIDDEN + N_EXPERTS)
    h, s = ops.linear(both, [backend.matrix(f32(eye[:HIDDEN])), backend.matrix(f32(eye[HIDDEN:]))])
    routing = ops.route(s, CHOSEN, gating)
    active = ops.experts(
        h, routing, experts(INNER, HIDDEN, 10), experts(INNER, HIDDEN, 30),
        norm=Norm(np.linspace(0.5, 2, HIDDEN).astype(np.float32), 1e-5),
        gate_bias=biases(INNER), up_bias=biases(INNER), clamp=clamp,
    )  # fmt: skip
    h = ops.combine(active, routing, experts(HIDDEN, INNER, 50), h, biases(HIDDEN))
    ops.head(h, backend.matrix(f32(np.eye(HIDDEN))))
    return backend.compile(ops)


def inputs(n_tokens: int, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_tokens, HIDDEN)).astype(np.float32)
    return x, rng.standard_normal((n_tokens, N_EXPERTS)).astype(np.float32)


def run(program: Any, sequences: list[tuple[int, int]], tokens: list[int] | None = None) -> Float32Array:
    return np.asarray(program.run(batch(sequences, tokens=tokens), program.new_kv(128)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("clamp", [None, Clamp(1.702, 0.5)])
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 40])
def test_equals_numpy(isa: str, clamp: Clamp | None, n_tokens: int) -> None:
    x, scores = inputs(n_tokens)
    got = run(mixture(NativeBackend(2, isa), x, scores, clamp), [(0, n_tokens)])
    expected = run(mixture(ReferenceBackend(), x, scores, clamp), [(0, n_tokens)])
    tolerance = 6e-3 if isa == "amx" and n_tokens >= 16 else 1e-4
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


BIAS = np.array([0.3, -0.2, 0.0, 0.5, -0.4, 0.1, 0.2, -0.1], np.float32)
GATINGS = [
    Gating(normalised=False),
    Gating(normalised=False, scale=16.0, n_groups=4, n_kept_groups=2),  # DeepSeek-V2
    Gating("sigmoid", scale=2.5, bias=BIAS, n_groups=4, n_kept_groups=2, group_best=2),  # DeepSeek-V3
    Gating("sigmoid", bias=-BIAS - 1, n_groups=2, n_kept_groups=1, group_best=3),  # all ranks below zero
    Gating("sigmoid", normalised=False),
    Gating("sigmoid", bias=BIAS),  # GLM-4.5, Kimi-K2
]


@pytest.mark.parametrize("gating", GATINGS, ids=repr)
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_gatings_equal_numpy(gating: Gating, n_tokens: int) -> None:
    x, scores = inputs(n_tokens, seed=3)
    got = run(mixture(NativeBackend(2), x, scores, gating=gating), [(0, n_tokens)])
    expected = run(mixture(ReferenceBackend(), x, scores, gating=gating), [(0, n_tokens)])
    tolerance = 6e-3 if available_isas()[-1] == "amx" and n_tokens >= 16 else 1e-4
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def choice(scores: list[float], k: int, gating: Gating) -> dict[int, float]:
    """The experts of one token and their weights: expert e's output is 1 in column e, and nothing else."""
    n = len(scores)
    found: list[dict[int, float]] = []
    backends: tuple[Backend, ...] = (ReferenceBackend(), NativeBackend(1))
    for backend in backends:
        ops = Ops()
        x = ops.embed(backend.matrix(f32(np.array([[1.0] + [0.0] * 31 + scores]))))
        eye = np.eye(32 + n)
        zero, s = ops.linear(x, [backend.matrix(f32(np.zeros((n, 32 + n)))), backend.matrix(f32(eye[32:]))])
        (one,) = ops.linear(x, [backend.matrix(f32(eye[:32]))])
        routing = ops.route(s, k, gating)
        big = 20.0 * np.eye(1, 32)  # silu(20) is 20
        ones = [backend.matrix(f32(big)) for _ in range(n)]
        active = ops.experts(one, routing, ones, [backend.matrix(f32(big / 400)) for _ in range(n)])
        downs = [backend.matrix(f32(np.eye(n)[:, e : e + 1])) for e in range(n)]
        ops.head(ops.combine(active, routing, downs, zero), backend.matrix(f32(np.eye(n))))
        program = backend.compile(ops)
        weights = np.asarray(program.run(batch([(0, 1)]), program.new_kv(1)))[0]
        found.append({int(e): float(weights[e]) for e in np.nonzero(weights)[0]})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    return found[0]


def test_a_bias_decides_and_does_not_weigh() -> None:
    gating = Gating("sigmoid", normalised=False, bias=np.array([0, 0, 10, 0], np.float32))
    assert choice([0.0, 3.0, -3.0, 1.0], 2, gating) == pytest.approx({1: 1 / (1 + np.exp(-3)), 2: 1 / (1 + np.exp(3))})


def test_groups_shut_out_better_experts() -> None:
    """The best expert of all is in a group whose sum is the lowest."""
    gating = Gating("sigmoid", bias=np.zeros(6, np.float32), n_groups=3, n_kept_groups=2, group_best=2)
    assert set(choice([2.0, -9.0, 1.0, 1.0, 1.1, 1.2], 3, gating)) == {2, 4, 5}


def test_a_group_is_as_good_as_its_best() -> None:
    gating = Gating(normalised=False, scale=2.0, n_groups=3, n_kept_groups=1)
    scores = [2.0, -9.0, 1.0, 1.0, 1.1, 1.2]
    shares = np.exp(scores) / np.exp(scores).sum()
    assert choice(scores, 2, gating) == pytest.approx({0: 2 * shares[0], 1: 2 * shares[1]}, rel=1e-5)


def test_levels_threads_and_company_do_not_change_a_bit() -> None:
    x, scores = inputs(700)  # more tokens of an expert than one product takes, if all choose alike
    scores[:600, :CHOSEN] += 100
    whole = run(mixture(NativeBackend(2, VECTOR_ISAS[-1]), x, scores), [(0, 700)])
    for isa in VECTOR_ISAS:
        for n_threads in (1, 3):
            program = mixture(NativeBackend(n_threads, isa), x, scores)
            assert np.array_equal(run(program, [(0, 1)], tokens=[650]), whole[650:651])
            assert np.array_equal(run(program, [(0, 40)], tokens=list(range(590, 630))), whole[590:630])
            assert np.array_equal(
                run(program, [(0, 1), (7, 2), (0, 3)], tokens=[5, 6, 7, 699, 3, 4]), whole[[5, 6, 7, 699, 3, 4]]
            )


@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_scores_the_first_experts_are_chosen(isa: str) -> None:
    x, scores = inputs(3)
    scores[:] = 1.0
    scores[1, 6] = 2.0
    got = run(mixture(NativeBackend(1, isa), x, scores), [(0, 3)])
    plain = scores + np.linspace(1e-3, 0, N_EXPERTS, dtype=np.float32) * 1e-3  # no ties, the same order
    assert np.allclose(got, run(mixture(ReferenceBackend(), x, plain), [(0, 3)]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_a_score_that_is_no_number_spoils_its_own_token_only(isa: str) -> None:
    x, scores = inputs(20)
    scores[4] = np.nan
    scores[9, 2] = np.inf
    got = run(mixture(NativeBackend(2, isa), x, scores), [(0, 20)])
    bad = np.asarray(~np.isfinite(got).all(axis=1))
    assert bad[[4, 9]].all()
    assert not np.delete(bad, [4, 9]).any()


@pytest.mark.parametrize("isa", ISAS)
def test_a_value_that_is_no_number_survives_the_clamp(isa: str) -> None:
    x, scores = inputs(2)
    x[1, 7] = np.nan
    got = run(mixture(NativeBackend(1, isa), x, scores, Clamp(1.702, 7.0)), [(0, 2)])
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()


def test_scales_apart_pack_like_blocks() -> None:
    """Hugging Face's MXFP4, every second row of a tensor, against GGUF's blocks of the same numbers."""
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 256, (38, 4 * 16), np.uint8)
    scales = rng.integers(100, 140, (38, 4), np.uint8)
    tensor = QTensor(FORMATS["MXFP4"], (19, 128), codes[1::2], scales[1::2])
    backend = NativeBackend(1)
    packed = backend.matrix(tensor)
    backend.pack_waiting()
    row = np.empty(128, np.float32)
    for isa in ISAS:
        for r in range(19):
            _kernels.unpack_row(packed, isa, r, row)
            assert np.array_equal(row, tensor.to_float32()[r])


def test_bfloat16_rounds_to_eight_bits() -> None:
    weight = random_tensor("BF16", 21, 96, seed=9)
    values = weight.to_float32()
    values[3, 32:64] = 0
    values[4, :32] *= 1e-30  # scales below half precision's normal numbers
    data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(21, -1)
    weight = QTensor(FORMATS["BF16"], (21, 96), data)
    backend = NativeBackend(1)
    packed = backend.matrix(weight, "Q8_0")
    backend.pack_waiting()
    row = np.empty(96, np.float32)
    for r in range(21):
        _kernels.unpack_row(packed, "scalar", r, row)
        blocks, expected = row.reshape(3, 32), weight.to_float32()[r].reshape(3, 32)
        step = np.abs(expected).max(1) / 127
        assert (np.abs(blocks - expected).max(1) <= 0.501 * step + 2.0**-25 * 127).all()
