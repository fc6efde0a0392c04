"""Every family against transformers' logits (tests/golden/<family>), and against itself."""

from __future__ import annotations

import numpy as np
import pytest

from golden_models import FAMILIES, LATENT, agreement, expected_of, load_golden, mean_kl, step
from kernel_programs import VECTOR_ISAS

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def test_reference_equals_transformers(family: str) -> None:
    model, golden = load_golden(family, precision="reference"), expected_of(family)
    logits = step(model, golden["input_ids"], 0, model.new_kv(8))
    assert np.abs(logits - golden["logits"]).max() <= 2e-3


def test_exact_is_close_to_transformers(family: str) -> None:
    model, golden = load_golden(family, rounding="native"), expected_of(family)
    logits = step(model, golden["input_ids"], 0, model.new_kv(8))
    assert mean_kl(golden["logits"], logits) <= 1e-3
    assert agreement(golden["logits"], logits) >= 0.99


@pytest.mark.parametrize("precision", ["reference", "exact"])
def test_greedy_continuation(family: str, precision: str) -> None:
    model, golden = load_golden(family, precision=precision, rounding="native"), expected_of(family)
    kv = model.new_kv(8)
    logits = step(model, golden["input_ids"], 0, kv)
    position = len(golden["input_ids"])
    for expected, margin in zip(golden["greedy_ids"], golden["greedy_margin"], strict=True):
        chosen = int(logits[-1].argmax())
        if margin < 0.1:
            break
        assert chosen == expected
        logits = step(model, np.array([chosen]), position, kv)
        position += 1


def test_step_by_step_equals_prefill(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_ISA", VECTOR_ISAS[-1])  # on tiles prefill rounds to bf16 what decode does not
    model, ids = load_golden(family), expected_of(family)["input_ids"]
    whole = step(model, ids, 0, model.new_kv(8))
    kv = model.new_kv(8)
    steps = np.array([step(model, ids[i : i + 1], i, kv)[0] for i in range(len(ids))])
    if family in LATENT:
        assert mean_kl(whole, steps) <= 1e-5
        assert agreement(whole, steps) >= 0.99
    else:
        assert np.array_equal(whole, steps)


@pytest.mark.parametrize("isa", VECTOR_ISAS[:-1])
def test_levels_do_not_change_a_bit(family: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = expected_of(family)["input_ids"][:40]
    logits = []
    for level in (isa, VECTOR_ISAS[-1]):
        monkeypatch.setenv("FREEHOLD_ISA", level)
        model = load_golden(family, n_threads=1)
        logits.append(step(model, ids, 0, model.new_kv(2)))
    assert np.array_equal(logits[0], logits[1])
