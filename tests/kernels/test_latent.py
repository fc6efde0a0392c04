"""Latent attention against numpy, its two forms against each other, and what may not change a bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from freehold.errors import UnsupportedError
from freehold.kernels import NativeBackend, ReferenceBackend, available_isas
from kernel_programs import VECTOR_ISAS, LatentProgram, batch

ISAS = available_isas()
SHAPES: list[dict[str, Any]] = [
    {},
    {"n_heads": 16, "k_dim": 128, "rotated": 64, "v_dim": 128, "rank": 512},  # DeepSeek-V2-Lite
    {"n_heads": 3, "k_dim": 16, "rotated": 16, "v_dim": 16, "rank": 32},
    {"n_heads": 24, "weights": "Q8_0"},
    {"weights": "F8_E4M3", "rank": 192},
]


def in_chunks(program: LatentProgram, n: int, chunk: int, prompt: tuple[int, int] | None = None) -> np.ndarray:
    """The outputs of a sequence of n tokens, computed `chunk` tokens at a time; `prompt` as in Batch.prompts."""
    prompts = None if prompt is None else np.array([prompt], np.int32)
    kv, table, parts = program.new_kv(), batch([(0, n)]).block_table, []
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        step = batch([(start, size)], tokens=range(start, start + size))
        parts.append(program.run(replace(step, block_table=table, prompts=prompts), kv))
    return np.concatenate(parts)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_equal_numpy(isa: str, shape: dict[str, Any]) -> None:
    if isa == "scalar" and shape.get("rank", 64) > 64:
        pytest.skip("small shapes are enough for the slow level")
    n = 70 if isa == "scalar" else 300
    expected = LatentProgram(ReferenceBackend(), n, **shape).run(batch([(0, n)]))
    program = LatentProgram(NativeBackend(2, isa), n, **shape)
    tolerance = 1e-2 if isa == "amx" else 1e-3  # the cache is f16, and so are keys and values made of it
    assert relative(program.run(batch([(0, n)])), expected) <= tolerance  # plain
    assert relative(in_chunks(program, n, 1), expected) <= tolerance  # absorbed
    assert relative(in_chunks(program, n, 37), expected) <= tolerance  # plain at first, absorbed later


def test_the_forms_agree_over_several_splits() -> None:
    n = 700
    program = LatentProgram(NativeBackend(2), n)
    whole = program.run(batch([(0, n)]))
    tolerance = 1e-2 if ISAS[-1] == "amx" else 1e-3
    assert relative(in_chunks(program, n, 129), whole) <= tolerance
    alone = in_chunks(program, n, 1)
    assert relative(alone, whole) <= tolerance
    assert not np.array_equal(alone, whole)  # they are two forms indeed


@pytest.mark.parametrize("chunk", [1, 7, 32, 290, 300])
def test_chunks_of_a_prompt_give_the_same_bits(chunk: int) -> None:
    """A prompt of 280 tokens and what was said after it, which one step of a recomputation may hold together."""
    program = LatentProgram(NativeBackend(2, VECTOR_ISAS[-1]), 300)  # on tiles products depend on chunks below 16
    steps = in_chunks(program, 300, 280, prompt=(0, 280))
    assert np.array_equal(in_chunks(program, 300, chunk, prompt=(0, 280)), steps)
    assert not np.array_equal(in_chunks(program, 300, chunk, prompt=(0, 300))[280:], steps[280:])


def test_a_short_prompt_after_a_long_past_is_absorbed() -> None:
    program = LatentProgram(NativeBackend(2, VECTOR_ISAS[-1]), 400)
    alone = in_chunks(program, 400, 1)
    assert np.array_equal(in_chunks(program, 400, 8, prompt=(392, 400)), alone)


def test_company_and_threads_give_the_same_bits() -> None:
    def run(n_threads: int, sequences: list[tuple[int, int]], tokens: range) -> np.ndarray:
        return LatentProgram(NativeBackend(n_threads), 900).run(batch(sequences, tokens=tokens))

    sequences = [(0, 400), (0, 1), (0, 300), (0, 2), (0, 1)]
    together = run(2, sequences, range(704))
    for n_threads in (1, 3, 9):  # more workers than heads: queries are divided too
        assert np.array_equal(together, run(n_threads, sequences, range(704)))
    start = 0
    for _, n in sequences:
        assert np.array_equal(together[start : start + n], run(2, [(0, n)], range(start, start + n)))
        start += n


def test_decoding_in_company_gives_the_same_bits() -> None:
    """Three sequences with a past of several splits, absorbed, in one batch and alone."""
    program = LatentProgram(NativeBackend(2), 700)
    pasts, kv = (600, 30, 299), program.new_kv()
    full = batch([(0, n) for n in pasts], tokens=list(range(600)) + list(range(30)) + list(range(299)))
    table = np.concatenate([full.block_table, np.full((3, 1), 0, np.int32)], axis=1)
    for s in range(3):
        table[s] = np.arange(s * table.shape[1], (s + 1) * table.shape[1])
    program.run(replace(full, block_table=table), kv)
    step = batch([(n, 1) for n in pasts], tokens=[5, 6, 7])
    together = program.run(replace(step, block_table=table), kv)
    for s, n in enumerate(pasts):
        one = batch([(n, 1)], tokens=[5 + s])
        alone = program.run(replace(one, block_table=table[s : s + 1]), kv)
        assert np.array_equal(alone[0], together[s])


def test_all_levels_give_the_same_bits() -> None:
    results = [LatentProgram(NativeBackend(2, isa), 90).run(batch([(0, 90)])) for isa in VECTOR_ISAS]
    steps = [in_chunks(LatentProgram(NativeBackend(2, isa), 40), 40, 1) for isa in VECTOR_ISAS]
    for isa, result, step in zip(VECTOR_ISAS, results, steps, strict=True):
        assert np.array_equal(result, results[0]), isa
        assert np.array_equal(step, steps[0]), isa


@pytest.mark.parametrize("chunk", [1, 33])
def test_stale_values_behind_the_last_token_do_no_harm(chunk: int) -> None:
    program = LatentProgram(NativeBackend(2), 64)
    clean = in_chunks(program, 33, chunk)
    kv = program.new_kv(2)
    kv.data[:] = 0x7FC0  # NaN everywhere, as another request may have left it
    program.new_kv = lambda n_blocks=2: kv  # type: ignore[method-assign]
    assert np.array_equal(in_chunks(program, 33, chunk), clean)


@pytest.mark.parametrize("shape", [{"rank": 1024}, {"rotated": 8}, {"k_dim": 256}, {"v_dim": 20}])
def test_shapes_without_a_kernel_are_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="have no kernel"):
        LatentProgram(NativeBackend(1), 4, **shape)
