"""What fits: the memory plan and its refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.budget import (
    MemoryPlan,
    check_weights,
    kv_bytes_per_token,
    plan_memory,
)
from freehold.core import KV_BLOCK, KVSpec
from freehold.errors import RequestError, ResourceError

WORKING = 123_000_000


def plan(budget: int, context: int | None = None, max_context: int = 8192, n_sequences: int = 4) -> MemoryPlan:
    return plan_memory(
        weight_bytes=10**8,
        token_bytes=1000,
        max_context=max_context,
        context=context,
        budget=10**8 + WORKING + budget,
        working_bytes=WORKING,
        n_sequences=n_sequences,
    )


def test_kv_bytes() -> None:
    assert kv_bytes_per_token([KVSpec("full", 3, 64, 64)] * 30, 2) == 30 * 3 * 128 * 2


def test_plenty_of_memory_takes_the_models_context_for_every_conversation() -> None:
    assert (plan(10**9).context, plan(10**9).n_blocks, plan(10**9).note) == (8192, 4 * 8192 // KV_BLOCK, None)


def test_little_memory_shortens_the_context_and_says_so() -> None:
    found = plan(4_000_000)
    assert found.context == 4_000_000 // 32_000 * 32
    assert "instead of the model's 8192" in (found.note or "")


def test_a_wish_is_granted_or_refused_with_the_numbers() -> None:
    assert plan(10**9, context=1000).context == 1000
    with pytest.raises(ResourceError, match=r"context of 8000 needs .* KV cache 0\.01 GB.*A context of 4000 fits"):
        plan(4_000_000, context=8000)
    for context in (0, -1, 8193):
        with pytest.raises(RequestError, match="expected 1 to 8192"):
            plan(10**9, context=context)


def test_weights_alone_too_big() -> None:
    with pytest.raises(ResourceError, match="freehold doctor"):
        check_weights(10**9, 1, 10**9, "big")
    check_weights(10**9, 10**9, 2 * 10**9, "big")
    with pytest.raises(ResourceError, match="smaller model"):
        plan(0)


@settings(max_examples=200, deadline=None)
@given(budget=st.integers(0, 10**8), context=st.none() | st.integers(1, 4096), n_sequences=st.integers(1, 8))
def test_a_plan_never_exceeds_the_budget_and_holds_one_conversation(
    budget: int, context: int | None, n_sequences: int
) -> None:
    try:
        found = plan(budget, context, 4096, n_sequences)
    except ResourceError:
        return
    assert found.spare_bytes >= 0
    assert found.context <= found.n_blocks * KV_BLOCK
    assert context in (None, found.context)
