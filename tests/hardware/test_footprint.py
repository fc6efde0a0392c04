"""Memory beside weights and KV cache: the arithmetic on shapes small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.engine import EngineConfig
from freehold.hardware.footprint import ARENA_SHARE, MAX_SEQUENCES, PROGRAM_BYTES, STEP_TOKENS, Footprint

DENSE = Footprint(
    values=1000, columns=300, hidden=100, vocabulary=5000, column_bytes=3.0, text_bytes=700, mapped_bytes=40
)
MIXTURE = replace(DENSE, top_k=2, n_experts=8, pair_columns=64, pair_bytes=3.0)


def without_threads(shape: Footprint, n_tokens: int, n_sequences: int = 1, context: int = 0) -> float:
    return shape.step_bytes(n_tokens, n_sequences, context, 0)


def test_a_step_takes_its_buffers_inputs_and_logits() -> None:
    assert without_threads(DENSE, 10) == 10 * (4 * 1000 + 3 * 300) + 4 * 3 * 5000
    assert without_threads(DENSE, 10, n_sequences=5) - without_threads(DENSE, 10) == 4 * 4 * 5000
    assert DENSE.step_bytes(10, 1, 0, 3) > DENSE.step_bytes(10, 1, 0, 2)


def test_experts_take_a_row_for_every_pair_and_their_padding() -> None:
    pairs = 10 * 2
    assert without_threads(MIXTURE, 10) - without_threads(DENSE, 10) == (pairs + 3 * 8) * 64 * 3 + 4 * pairs * 100
    assert without_threads(MIXTURE, 1) - without_threads(DENSE, 1) == (2 + 3 * 2) * 64 * 3 + 4 * 2 * 100


def test_latents_are_kept_for_every_position() -> None:
    latent = replace(DENSE, latent=512)
    assert without_threads(latent, 10, context=100) - without_threads(latent, 10) == 100 * 512 * 6.875


def test_what_is_expected_counts_no_more_than_is_asked_of_the_engine() -> None:
    few, many = DENSE.working_bytes(10, 1, 2), DENSE.working_bytes(10_000, 1, 2)
    assert few == PROGRAM_BYTES + 700 + DENSE.step_bytes(10, 1, 10, 2)
    assert many == PROGRAM_BYTES + 700 + DENSE.step_bytes(STEP_TOKENS, 1, 10_000, 2)


def test_the_first_start_packs() -> None:
    later, first = DENSE.peak_bytes(6400, 50, 10, 1, 2)
    assert later == 6450 + DENSE.working_bytes(10, 1, 2)
    assert first == later + 100  # a 64th of the weights
    mapped = replace(DENSE, mapped_bytes=10**9)
    assert mapped.peak_bytes(6400, 50, 10, 1, 2) == (later, 6500 + 10**9 + PROGRAM_BYTES + 700)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, MAX_SEQUENCES), st.integers(1, 64), st.integers(0, 10**12))
def test_a_budget_reserves_more_than_is_expected(context: int, n_sequences: int, n_threads: int, weights: int) -> None:
    reserve = MIXTURE.reserve_bytes(weights, context, n_threads)
    assert reserve >= MIXTURE.working_bytes(context, n_sequences, n_threads) + ARENA_SHARE * weights


def test_the_step_is_the_engines() -> None:
    config = EngineConfig(n_blocks=1)
    assert (config.max_batch_tokens, config.max_sequences) == (STEP_TOKENS, MAX_SEQUENCES)
