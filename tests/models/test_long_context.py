"""Prompts that cross the context a model was first trained with, for every scaling of rotary positions that reaches
beyond it: whole models against the same in float64, with frequencies computed one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.models import load_model
from freehold.weights import open_checkpoint
from golden_models import step
from plain_models import golden_weights, logits
from qwen_files import golden_config, with_config

N_TOKENS, ORIGINAL = 300, 64
YARN = {"factor": 8.0, "original_max_position_embeddings": ORIGINAL}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **YARN}),
    "qwen3": ("qwen3", {"type": "yarn", **YARN}),
    "deepseek_v2_lite": ("deepseek_v2_lite", {"type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707, **YARN}),
    "deepseek_v3": ("deepseek_v3", {"type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0, **YARN}),
    "kimi_k2": ("deepseek_v3", {"type": "yarn", "beta_fast": 1, "mscale": 1, "mscale_all_dim": 1, **YARN}),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_prompts_beyond_the_original_context(tmp_path: Path, name: str) -> None:
    family, scaling = SCALINGS[name]
    change = {"rope_scaling": scaling, "num_hidden_layers": 2}
    ids = np.random.default_rng(7).integers(0, 512, N_TOKENS)
    with open_checkpoint(with_config(tmp_path, family, **change)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    got = step(model, ids, 0, model.new_kv(10))
    expected = logits(golden_config(family) | change, golden_weights(family), ids)
    assert np.abs(got - expected).max() <= 2e-3
