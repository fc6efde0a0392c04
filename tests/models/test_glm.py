"""GLM beyond its logits (test_goldens.py): published configs, what its flags decide, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.errors import ModelFileError, UnsupportedError
from freehold.models import load_model, residence
from freehold.models.common import Config
from freehold.models.glm import GlmConfig
from freehold.weights import open_checkpoint
from golden_models import GOLDEN, expected_of, load_golden, step
from gpt_oss_files import read_golden, save_safetensors
from plain_models import frequencies, golden_weights, logits
from qwen_files import golden_config, with_config

AIR: dict[str, Any] = {
    "model_type": "glm4_moe", "attention_bias": True, "attention_dropout": 0.0, "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "partial_rotary_factor": 0.5, "initializer_range": 0.02, "intermediate_size": 10944,
    "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "norm_topk_prob": True,
    "num_attention_heads": 96, "n_group": 1, "topk_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
    "routed_scaling_factor": 1.0, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "num_hidden_layers": 46,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 1000000,
    "num_nextn_predict_layers": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0", "use_cache": True, "use_qk_norm": False, "vocab_size": 151552,
}  # fmt: skip
FULL = AIR | {
    "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "num_hidden_layers": 92, "use_qk_norm": True,
    "max_position_embeddings": 202752,
}  # fmt: skip


@pytest.mark.parametrize(("config", "n_dense", "context"), [(AIR, 1, 131072), (FULL, 3, 202752)])
def test_published_configs(config: dict[str, Any], n_dense: int, context: int) -> None:
    read = GlmConfig.read(Config(config, "GLM"))
    assert (read.biased, read.normalised) == (True, config["use_qk_norm"])
    assert (read.feed_forward.n_dense, read.max_context) == (n_dense, context)
    assert read.feed_forward.mixture is not None
    assert read.feed_forward.mixture.gating.scale == config["routed_scaling_factor"]
    np.testing.assert_allclose(read.rope.inverse_frequencies, frequencies(config, 64), rtol=1e-12)
    assert not read.rope.interleaved


def run(directory: Path, ids: np.ndarray) -> np.ndarray:
    with open_checkpoint(directory) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    return np.asarray(step(model, ids, 0, model.new_kv(8)))


@pytest.mark.parametrize(
    "change",
    [
        {"partial_rotary_factor": 0.25},
        {"partial_rotary_factor": 1.0},
        {"n_group": 4, "topk_group": 2},
        {"routed_scaling_factor": 2.5, "num_experts_per_tok": 3},
        {"norm_topk_prob": False},
        {"rms_norm_eps": 0.1, "rope_theta": 10000.0},
    ],
)
def test_config_keys_against_the_formulas(tmp_path: Path, change: dict[str, Any]) -> None:
    """Values that the golden checkpoint does not have, against the model written down in float64."""
    golden = expected_of("glm4_moe")
    ids = golden["input_ids"][:24]
    got = run(with_config(tmp_path, "glm4_moe", **change), ids)
    expected = logits(golden_config("glm4_moe") | change, golden_weights("glm4_moe"), ids)
    assert np.abs(got - expected).max() <= 2e-3
    assert np.abs(got - golden["logits"][:24]).max() > 0.05


@pytest.mark.parametrize(
    ("change", "absent"),
    [({"use_qk_norm": False}, ("q_norm", "k_norm")), ({"attention_bias": False}, ("q_proj.bias", "v_proj.bias"))],
)
def test_flags_decide_about_norms_and_biases(tmp_path: Path, change: dict[str, Any], absent: tuple[str, ...]) -> None:
    """Without norms, as in 4.5-Air, or without biases; the tensors that such a model lacks may be there."""
    weights = golden_weights("glm4_moe")
    kept = {name: w for name, w in weights.items() if not any(part in name for part in (*absent, "k_proj.bias"))}
    if "use_qk_norm" in change:
        kept |= {name: w for name, w in weights.items() if name.endswith("k_proj.bias")}
    ids = expected_of("glm4_moe")["input_ids"][:24]
    got = run(with_config(tmp_path, "glm4_moe", **change), ids)
    assert np.abs(got - logits(golden_config("glm4_moe") | change, kept, ids)).max() <= 2e-3


def test_step_by_step_equals_whole() -> None:
    model, ids = load_golden("glm4_moe", precision="reference"), expected_of("glm4_moe")["input_ids"][:24]
    whole = step(model, ids, 0, model.new_kv(1))
    kv = model.new_kv(1)
    steps = [step(model, ids[i : i + 1], i, kv)[0] for i in range(len(ids))]
    np.testing.assert_allclose(steps, whole, atol=2e-4)


def test_every_tensor_is_used_but_those_of_the_layer_that_guesses_ahead(tmp_path: Path) -> None:
    golden = read_golden(GOLDEN / "glm4_moe")
    ahead = {n.replace("layers.2.", "layers.3."): tensor for n, tensor in golden.items() if "layers.2." in n}
    directory = with_config(tmp_path, "glm4_moe")
    save_safetensors(directory / "model.safetensors", golden | ahead)
    with open_checkpoint(GOLDEN / "glm4_moe") as checkpoint:
        total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
        expected = residence(checkpoint)
    with open_checkpoint(directory) as checkpoint:
        assert residence(checkpoint) == expected
        assert load_model(checkpoint, precision="reference").n_parameters == total


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings"),
        ({"topk_method": "greedy"}, UnsupportedError, "topk_method"),
        ({"attention_bias": 1}, ModelFileError, "attention_bias"),
        ({"partial_rotary_factor": 0.3}, ModelFileError, "partial_rotary_factor rotates 9.6 of a head's 32"),
        ({"partial_rotary_factor": 2.0}, ModelFileError, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.0}, ModelFileError, "partial_rotary_factor"),
        ({"head_dim": None}, ModelFileError, "head_dim"),
        ({"head_dim": 64}, ModelFileError, "q_proj"),
        ({"n_routed_experts": 9}, ModelFileError, "e_score_correction_bias"),
        ({"num_experts_per_tok": 9}, ModelFileError, "9; the model has 8 experts"),
        ({"topk_group": 2}, ModelFileError, "8 experts cannot be 1 groups of which 2"),
        ({"first_k_dense_replace": 2}, ModelFileError, "layers.1.mlp.gate_proj"),
        ({"num_hidden_layers": 4}, ModelFileError, "model.layers.3"),
        ({"model_type": "glm4"}, UnsupportedError, "glm4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    directory = with_config(tmp_path, "glm4_moe", **change)
    with pytest.raises(error, match=message), open_checkpoint(directory) as checkpoint:
        load_model(checkpoint, precision="reference")
