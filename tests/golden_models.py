"""The tiny checkpoints of tests/golden, loaded and run, and how far two sets of logits are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from freehold.core import Batch, Float32Array
from freehold.models import load_model
from freehold.models.loader import LoadedModel
from freehold.weights import open_checkpoint

GOLDEN = Path(__file__).parent / "golden"
LATENT = ("deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8")
"""Those that attend to latents, in another form for a few tokens than for many."""
FAMILIES = (*LATENT, "glm4_moe", "gpt_oss", "llama", "qwen2", "qwen3", "qwen3_moe")


def load_golden(family: str, **options: Any) -> LoadedModel:
    """The family's checkpoint; options are load_model's."""
    with open_checkpoint(GOLDEN / family) as checkpoint:
        return load_model(checkpoint, **options)


def expected_of(family: str) -> dict[str, np.ndarray]:
    """input_ids [T], logits [T, vocab], greedy_ids and greedy_margin [24], made with transformers in float32."""
    return dict(np.load(GOLDEN / family / "golden.npz"))


def step(model: LoadedModel, ids: np.ndarray, start: int, kv: Any) -> Float32Array:
    """Logits [n, vocab] of n tokens of one sequence from position `start`."""
    n = len(ids)
    batch = Batch(
        tokens=ids.astype(np.int32),
        positions=np.arange(start, start + n, dtype=np.int32),
        seq_starts=np.array([0, n], np.int32),
        block_table=np.arange(kv.n_blocks, dtype=np.int32)[None],
        logit_rows=np.arange(n, dtype=np.int32),
    )
    logits: Float32Array = model.forward(batch, kv)
    return logits


def mean_kl(expected: Float32Array, logits: Float32Array) -> float:
    """Mean Kullback-Leibler divergence in nats of the distributions that two sets of logits [n, vocab] mean."""
    p, q = _log_softmax(expected), _log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def agreement(expected: Float32Array, logits: Float32Array) -> float:
    """The share of rows whose largest logit is the same one."""
    return float((logits.argmax(-1) == expected.argmax(-1)).mean())


def _log_softmax(x: Float32Array) -> np.ndarray:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
