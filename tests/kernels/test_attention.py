"""Paged attention against numpy, and its promise that chunks, batches and threads never change a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold.errors import KernelError, UnsupportedError
from freehold.kernels import NativeBackend, ReferenceBackend, available_isas
from kernel_programs import TILE_TOKENS, VECTOR_ISAS, AttentionProgram, batch

ISAS = available_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n_heads", "n_kv", "dim"), [(4, 4, 16), (9, 3, 64), (8, 1, 128), (2, 1, 256)])
@pytest.mark.parametrize("window", [None, 1, 20, 300])
def test_equals_numpy(isa: str, n_heads: int, n_kv: int, dim: int, window: int | None) -> None:
    if isa == "scalar" and dim != 64:
        pytest.skip("one shape is enough for the slow level")
    n = 70 if isa == "scalar" else 560
    got = AttentionProgram(NativeBackend(2, isa), n, n_heads, n_kv, dim, window).run(batch([(0, n)]))
    expected = AttentionProgram(ReferenceBackend(), n, n_heads, n_kv, dim, window).run(batch([(0, n)]))
    tolerance = 8e-3 if isa == "amx" else 4e-3  # KV is rounded to bf16; amx rounds q, k and v's products too
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


CHUNKS = [(VECTOR_ISAS[-1], chunk) for chunk in (1, 7, 32, 300)]
if "amx" in ISAS:
    CHUNKS += [("amx", 32), ("amx", 585)]  # no chunk of less than TILE_TOKENS tokens: those are computed as decode is


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("isa", "chunk"), CHUNKS)
def test_chunks_give_the_same_bits(isa: str, chunk: int, window: int | None) -> None:
    n = 601
    program = AttentionProgram(NativeBackend(2, isa), n, 6, 2, 32, window)
    whole = program.run(batch([(0, n)]))
    kv = program.new_kv()
    table = batch([(0, n)]).block_table
    for start in range(0, n, chunk):
        size = min(chunk, n - start)
        step = batch([(start, size)], tokens=range(start, start + size))
        step = type(step)(step.tokens, step.positions, step.seq_starts, table, step.logit_rows)
        assert np.array_equal(program.run(step, kv), whole[start : start + size])


def test_company_and_threads_give_the_same_bits() -> None:
    def run(n_threads: int, sequences: list[tuple[int, int]], tokens: range) -> np.ndarray:
        return AttentionProgram(NativeBackend(n_threads), 900, 6, 2, 32).run(batch(sequences, tokens=tokens))

    together = run(2, [(0, 400), (0, 100), (0, 300)], range(800))
    assert np.array_equal(together, run(1, [(0, 400), (0, 100), (0, 300)], range(800)))
    assert np.array_equal(together, run(3, [(0, 400), (0, 100), (0, 300)], range(800)))
    for start, n in ((0, 400), (400, 100), (500, 300)):
        assert np.array_equal(together[start : start + n], run(2, [(0, n)], range(start, start + n)))


def test_all_levels_give_the_same_bits() -> None:
    for n, levels in ((280, VECTOR_ISAS), (TILE_TOKENS - 1, ISAS)):
        results = [AttentionProgram(NativeBackend(2, isa), n, 3, 1, 32).run(batch([(0, n)])) for isa in levels]
        for isa, result in zip(levels, results, strict=True):
            assert np.array_equal(result, results[0]), isa


def test_stale_values_behind_the_last_token_do_no_harm() -> None:
    program = AttentionProgram(NativeBackend(2), 64, 4, 2, 32)
    kv = program.new_kv(2)
    clean = program.run(batch([(0, 33)]), kv)
    kv.data[:] = 0x7FC0  # NaN everywhere, as another request may have left it
    assert np.array_equal(program.run(batch([(0, 33)]), kv), clean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [99]}, "token id"),
        ({"tokens": [-1]}, "token id"),
        ({"block_table": [[7]]}, "block id"),
        ({"block_table": [[-1]]}, "block id"),
        ({"positions": [40]}, "outside the block table"),
        ({"positions": [-1]}, "outside the block table"),
        ({"logit_rows": [1]}, "logit row"),
        ({"seq_starts": [0, 2]}, "sequence starts"),
    ],
)
def test_indices_are_checked_before_they_become_addresses(change: dict[str, list[int]], message: str) -> None:
    program = AttentionProgram(NativeBackend(1), 8, 2, 1, 16)
    good = batch([(0, 1)])
    fields = {name: getattr(good, name) for name in ("tokens", "positions", "seq_starts", "block_table", "logit_rows")}
    fields |= {name: np.array(value, np.int32) for name, value in change.items()}
    with pytest.raises(KernelError, match=message):
        program.run(type(good)(**fields), program.new_kv(2))


@pytest.mark.parametrize("isa", ISAS)
def test_sinks_take_their_part_of_the_softmax(isa: str) -> None:
    """In prefill, in decode over one split and over several; also sinks far above and below every score."""
    sinks = np.array([0.5, -3, 40, -200, 2, 1], np.float32)
    n = 600
    expected = AttentionProgram(ReferenceBackend(), n, 6, 2, 32, sinks=sinks).run(batch([(0, n)]))
    program = AttentionProgram(NativeBackend(2, isa), n, 6, 2, 32, sinks=sinks)
    kv = program.new_kv()
    got = program.run(batch([(0, n)]), kv)
    tolerance = 8e-3 if isa == "amx" else 4e-3
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)
    again = program.run(batch([(n - 1, 1)], tokens=[n - 1]), kv)
    assert np.linalg.norm(again[0] - expected[-1]) <= tolerance * np.linalg.norm(expected[-1])


@pytest.mark.parametrize(("head_norms", "rotated"), [(True, None), (True, 16), (False, 48)])
@pytest.mark.parametrize("isa", ISAS)
def test_heads_are_normalised_and_rotated_in_part(isa: str, head_norms: bool, rotated: int | None) -> None:
    options: dict[str, Any] = {"head_norms": head_norms, "rotated": rotated}
    got = AttentionProgram(NativeBackend(2, isa), 70, 6, 2, 64, **options).run(batch([(0, 70)]))
    expected = AttentionProgram(ReferenceBackend(), 70, 6, 2, 64, **options).run(batch([(0, 70)]))
    plain = AttentionProgram(ReferenceBackend(), 70, 6, 2, 64).run(batch([(0, 70)]))
    assert np.linalg.norm(got - expected) <= (8e-3 if isa == "amx" else 4e-3) * np.linalg.norm(expected)
    assert np.linalg.norm(expected - plain) > 0.1 * np.linalg.norm(expected), "the options must change something"


def test_more_rotated_than_a_head_has_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="96 rotated dimensions in a head of 64"):
        AttentionProgram(NativeBackend(1), 4, 2, 2, 64, rotated=96)
