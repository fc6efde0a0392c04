"""Qwen beyond its logits (test_goldens.py): what decides about biases, norms, experts and context, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.errors import ModelFileError, UnsupportedError
from freehold.models import load_model, residence
from freehold.models.common import Config, read_context, read_rope
from freehold.weights import open_checkpoint
from golden_models import GOLDEN, expected_of, load_golden, step
from plain_models import golden_weights, logits
from qwen_files import golden_config, with_config


def logits_with(directory: Path, family: str, **change: Any) -> np.ndarray:
    with open_checkpoint(with_config(directory, family, **change)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    return np.asarray(step(model, expected_of(family)["input_ids"], 0, model.new_kv(8)))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2", {"sliding_window": 131072, "max_window_layers": 28, "use_mrope": False}),  # as in Qwen2.5-7B
        ("qwen2", {"attention_bias": True, "head_dim": 32, "layer_types": None}),
        ("qwen3", {"sliding_window": None, "rope_scaling": None}),
        ("qwen3_moe", {"num_experts": 16, "num_local_experts": None, "max_window_layers": 48}),  # as in Qwen3-30B-A3B
    ],
)
def test_keys_that_change_nothing(tmp_path: Path, family: str, change: dict[str, Any]) -> None:
    np.testing.assert_allclose(logits_with(tmp_path, family, **change), expected_of(family)["logits"], atol=2e-3)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2", {"rope_theta": 10000.0}),
        ("qwen3", {"rms_norm_eps": 0.1}),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}),
        ("qwen3_moe", {"num_experts_per_tok": 3}),
        ("qwen3_moe", {"norm_topk_prob": False}),
    ],
)
def test_keys_that_change_the_logits(tmp_path: Path, family: str, change: dict[str, Any]) -> None:
    assert np.abs(logits_with(tmp_path, family, **change) - expected_of(family)["logits"]).max() > 0.05


@pytest.mark.parametrize(
    ("family", "change", "error", "message"),
    [
        ("qwen2", {"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ("qwen2", {"attention_bias": False}, UnsupportedError, "attention_bias"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096}, UnsupportedError, "use_sliding_window"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, UnsupportedError, "layer_types"),
        ("qwen2", {"use_mrope": True}, UnsupportedError, "use_mrope"),
        ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError, "dynamic"),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [16]}}, ModelFileError, "factor"),
        ("qwen2", {"model_type": "qwen3"}, ModelFileError, "head_dim"),
        ("qwen2", {"num_key_value_heads": None}, ModelFileError, "num_key_value_heads"),
        ("qwen3", {"attention_bias": True}, UnsupportedError, "attention_bias"),
        ("qwen3", {"head_dim": None}, ModelFileError, "head_dim"),
        ("qwen3", {"head_dim": 32}, ModelFileError, "q_proj"),
        ("qwen3", {"model_type": "qwen2", "attention_bias": None}, ModelFileError, "self_attn.q_proj.bias"),
        ("qwen3", {"tie_word_embeddings": False}, ModelFileError, "lm_head"),
        ("qwen3", {"max_position_embeddings": None}, ModelFileError, "max_position_embeddings"),
        ("qwen3", {"model_type": "qwen3_next"}, UnsupportedError, "'qwen3_next' is not implemented"),
        ("qwen3_moe", {"model_type": "qwen2_moe"}, UnsupportedError, "'qwen2_moe' is not implemented"),
        ("qwen3_moe", {"norm_topk_prob": 1}, ModelFileError, "norm_topk_prob"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, UnsupportedError, "decoder_sparse_step"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, UnsupportedError, "mlp_only_layers"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 64}, UnsupportedError, "shared_expert_intermediate_size"),
        ("qwen3_moe", {"num_experts_per_tok": 17}, ModelFileError, "17; the model has 16 experts"),
        ("qwen3_moe", {"num_local_experts": None}, ModelFileError, "num_experts"),
        ("qwen3_moe", {"num_local_experts": 17}, ModelFileError, r"gate.weight' has shape \[16, 128\]"),
        ("qwen3_moe", {"moe_intermediate_size": 128}, ModelFileError, "experts.0.gate_proj"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, family: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), open_checkpoint(with_config(tmp_path, family, **change)) as checkpoint:
        load_model(checkpoint)


@pytest.mark.parametrize("norm", [False, None])
def test_weights_of_experts_as_the_softmax_gives_them(tmp_path: Path, norm: bool | None) -> None:
    """Without norm_topk_prob, which is also meant where it is absent, against the model in float64."""
    expected = logits(
        golden_config("qwen3_moe") | {"norm_topk_prob": False},
        golden_weights("qwen3_moe"),
        expected_of("qwen3_moe")["input_ids"],
    )
    np.testing.assert_allclose(logits_with(tmp_path, "qwen3_moe", norm_topk_prob=norm), expected, atol=2e-3)


def test_an_embedding_that_is_not_the_head_stays_in_its_file() -> None:
    with open_checkpoint(GOLDEN / "qwen2") as checkpoint:
        embedding = checkpoint.get("model.embed_tokens.weight").n_bytes
        assert residence(checkpoint).n_bytes == checkpoint.n_bytes - embedding
    with open_checkpoint(GOLDEN / "qwen3") as checkpoint:
        assert residence(checkpoint).n_bytes == checkpoint.n_bytes


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_every_tensor_is_used(family: str) -> None:
    with open_checkpoint(GOLDEN / family) as checkpoint:
        total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    assert load_golden(family).n_parameters == total


def test_yarn_as_the_publisher_advises() -> None:
    """Frequencies of Qwen2.5 and Qwen3 with a context of 131,072, one at a time in float64, the ramp's ends rounded."""
    config = {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }
    rope = read_rope(Config(config, "test"), 128)
    assert rope.scale == pytest.approx(0.1 * math.log(4) + 1)
    ends = (128 * math.log(32768 / (turns * 2 * math.pi)) / (2 * math.log(1e6)) for turns in (32, 1))
    low, high = math.floor(next(ends)), math.ceil(next(ends))
    assert (low, high) == (23, 40)
    for i, frequency in enumerate(rope.inverse_frequencies):
        share = min(max((i - low) / (high - low), 0), 1)
        plain = 1e6 ** (-2 * i / 128)
        assert frequency == pytest.approx(plain * (1 - share) + plain / 4 * share, rel=1e-12)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 4096),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),  # added by hand
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 4096),
        ({"type": "yarn", "factor": 1e300, "original_max_position_embeddings": 4096}, 1 << 30),
    ],
)
def test_yarn_stretches_the_context(scaling: dict[str, Any] | None, expected: int) -> None:
    assert read_context(Config({**golden_config("qwen3"), "rope_scaling": scaling}, "test")) == expected
