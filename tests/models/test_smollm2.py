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

CASES = json.loads((Path(__file__).parent.parent / "golden" / "smollm2.json").read_text())


def run(model: Any, ids: list[int], start: int, kv: Any) -> Float32Array:
    batch = Batch(
        tokens=np.array(ids, np.int32),
        positions=np.arange(start, start + len(ids), dtype=np.int32),
        seq_starts=np.array([0, len(ids)], np.int32),
        block_table=np.arange(kv.n_blocks, dtype=np.int32)[None],
        logit_rows=np.array([len(ids) - 1], np.int32),
    )
    logits: Float32Array = model.forward(batch, kv)[0]
    return logits


@pytest.mark.parametrize(("precision", "tolerance"), [("reference", 0.02), ("exact", 0.1)])
def test_first_token_and_greedy_answer(smollm2_path: Path, precision: Any, tolerance: float) -> None:
    with open_checkpoint(smollm2_path) as checkpoint:
        model = load_model(checkpoint, precision=precision)
    for case in CASES:
        kv = model.new_kv(8)
        logits = run(model, case["prompt_ids"], 0, kv)
        top = case["first_token_top20"]
        shifted = logits - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        assert np.abs(logprobs[top["ids"]] - top["logprobs"]).max() <= tolerance
        position = len(case["prompt_ids"])
        for expected, margin in zip(case["greedy_ids"], case["greedy_margin"], strict=True):
            chosen = int(logits.argmax())
            if margin < 0.1 and chosen != expected:
                break
            assert chosen == expected
            logits = run(model, [chosen], position, kv)
            position += 1
