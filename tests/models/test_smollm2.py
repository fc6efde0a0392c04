"""SmolLM2-135M-Instruct, the real one, against transformers on the dequantised weights (tests/golden/smollm2.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.core import Batch, Float32Array
from freehold.models import load_model
from freehold.weights import open_checkpoint
from golden_models import mean_kl
from kernel_programs import VECTOR_ISAS

CASES = json.loads((Path(__file__).parent.parent / "golden" / "smollm2.json").read_text())


def forward(model: Any, ids: list[int], start: int, kv: Any, rows: list[int]) -> Float32Array:
    batch = Batch(
        tokens=np.array(ids, np.int32),
        positions=np.arange(start, start + len(ids), dtype=np.int32),
        seq_starts=np.array([0, len(ids)], np.int32),
        block_table=np.arange(kv.n_blocks, dtype=np.int32)[None],
        logit_rows=np.array(rows, np.int32),
    )
    logits: Float32Array = model.forward(batch, kv)
    return logits


def check_first_token(logits: Float32Array, top: dict[str, Any], tolerance: float) -> None:
    shifted = logits - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    assert np.abs(logprobs[top["ids"]] - top["logprobs"]).max() <= tolerance


def test_reference(smollm2_path: Path) -> None:
    """In one pass over prompt and answer, because numpy takes its time: each next id is the likeliest one."""
    with open_checkpoint(smollm2_path) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    for case in CASES:
        ids, n_prompt = [*case["prompt_ids"], *case["greedy_ids"]], len(case["prompt_ids"])
        rows = range(n_prompt - 1, len(ids) - 1)
        logits = forward(model, ids, 0, model.new_kv(8), list(rows))
        check_first_token(logits[0], case["first_token_top20"], 0.02)
        for chosen, expected, margin in zip(logits.argmax(-1), case["greedy_ids"], case["greedy_margin"], strict=True):
            assert chosen == expected or margin < 0.1


def test_exact(smollm2_path: Path) -> None:
    with open_checkpoint(smollm2_path) as checkpoint:
        model = load_model(checkpoint)
    for case in CASES:
        kv, position = model.new_kv(8), len(case["prompt_ids"])
        logits = forward(model, case["prompt_ids"], 0, kv, [position - 1])[0]
        check_first_token(logits, case["first_token_top20"], 0.1)
        for expected, margin in zip(case["greedy_ids"], case["greedy_margin"], strict=True):
            chosen = int(logits.argmax())
            if margin < 0.1 and chosen != expected:
                break
            assert chosen == expected
            logits = forward(model, [chosen], position, kv, [0])[0]
            position += 1


def test_fast(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 8-bit activations cost, and that prompts and single tokens are computed alike."""
    monkeypatch.setenv("FREEHOLD_ISA", VECTOR_ISAS[-1])
    with open_checkpoint(smollm2_path) as checkpoint:
        exact, fast = load_model(checkpoint), load_model(checkpoint, precision="fast")
    divergences = []
    for case in CASES:
        ids = [*case["prompt_ids"], *case["greedy_ids"]]
        rows = list(range(len(ids)))
        kv = fast.new_kv(8)
        logits = forward(fast, ids, 0, kv, rows)
        divergences.append(mean_kl(forward(exact, ids, 0, exact.new_kv(8), rows), logits))
        assert np.array_equal(forward(fast, ids[-1:], rows[-1], kv, [0])[0], logits[-1])
    assert 1e-4 <= np.mean(divergences) <= 5e-3
