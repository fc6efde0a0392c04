"""Qwen's three GGUF architectures, written by PyPI `gguf` from the golden checkpoints' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.models import load_model
from freehold.weights import open_checkpoint
from golden_models import expected_of, step
from qwen_files import ARCHITECTURES, GGUF_NAMES, golden_config, save_gguf, stacked_numbers

KINDS = gguf.GGMLQuantizationType
EVERY_FAMILY = pytest.mark.parametrize("family", ARCHITECTURES)


@EVERY_FAMILY
def test_names_are_those_of_the_gguf_library(family: str) -> None:
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[family])
    table = gguf.get_tensor_name_map(architecture, 3)
    for name in stacked_numbers(family):
        ours = name
        for theirs, short in GGUF_NAMES.items():
            ours = ours.replace(theirs, short)
        assert table.get_name(name, (".weight", ".bias")) == ours


@EVERY_FAMILY
@pytest.mark.parametrize("quantisation", [None, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0])
def test_gguf_equals_safetensors(tmp_path: Path, family: str, quantisation: KINDS | None) -> None:
    golden = stacked_numbers(family)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", family, quantisation)) as ours:
        assert set(ours.names) == golden.keys()
        for name, expected in golden.items():
            if quantisation is not None and expected.ndim > 1:
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quantisation), quantisation)
            np.testing.assert_array_equal(ours.get(name).to_float32(), expected, err_msg=name)


@EVERY_FAMILY
def test_the_config_says_what_the_publishers_does(tmp_path: Path, family: str) -> None:
    published = golden_config(family)
    assert published.get("head_dim", 32) == published.setdefault("head_dim", 32)  # unsaid in Qwen2's
    published["attention_bias"] = family == "qwen2"  # as Qwen2's class has it, whatever its config
    published["num_experts"] = published.get("num_local_experts")  # as in the publisher's files
    published["rope_scaling"] = None
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", family)).config
    for key, value in config.items():
        assert published[key] == value, key


@EVERY_FAMILY
@pytest.mark.parametrize("precision", ["reference", "exact"])
def test_logits_are_those_of_the_published_files(tmp_path: Path, family: str, precision: Any) -> None:
    expected = expected_of(family)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", family, KINDS.BF16)) as checkpoint:
        model = load_model(checkpoint, precision=precision)
    logits = step(model, expected["input_ids"], 0, model.new_kv(8))
    if precision == "reference":
        assert np.abs(logits - expected["logits"]).max() <= 2e-3
    else:
        assert (logits.argmax(-1) == expected["logits"].argmax(-1)).mean() >= 0.99


def test_yarn(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 4096,
    }
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", "qwen3", **changes)) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
            "beta_fast": 32.0, "beta_slow": 1.0,
        }  # fmt: skip
        assert load_model(checkpoint).max_context == 4 * 4096


@pytest.mark.parametrize(
    ("family", "changes", "error", "message"),
    [
        ("qwen2", {"block_count": None}, ModelFileError, "'qwen2.block_count' is missing"),
        ("qwen2", {"expert_count": 8}, UnsupportedError, "'qwen2.expert_count' is 8; Freehold implements 0"),
        ("qwen2", {"pooling_type": 3}, UnsupportedError, "'qwen2.pooling_type' is not implemented"),
        ("qwen3", {"attention__value_length": 32}, UnsupportedError, "value_length is 32"),
        ("qwen3", {"attention__sliding_window": 512}, UnsupportedError, "sliding_window' is not implemented"),
        ("qwen3", {"rope__scaling__type": "longrope"}, UnsupportedError, "'longrope'"),
        ("qwen3_moe", {"expert_used_count": None}, ModelFileError, "'qwen3moe.expert_used_count' is missing"),
        ("qwen3_moe", {"expert_gating_func": 2}, UnsupportedError, "expert_gating_func' is 2; Freehold implements 1"),
        ("qwen3_moe", {"expert_weights_norm": False}, UnsupportedError, "expert_weights_norm' is False"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, UnsupportedError, "expert_weights_scale' is 2.5"),
        ("qwen3_moe", {"expert_shared_count": 1}, UnsupportedError, "expert_shared_count' is 1"),
    ],
)
def test_refuses_keys(
    tmp_path: Path, family: str, changes: dict[str, Any], error: type[FreeholdError], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(save_gguf(tmp_path / "a.gguf", family, **changes))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2", "blk.0.attn_q_norm.weight"),
        ("qwen2", "blk.1.attn_output.bias"),
        ("qwen2", "rope_freqs.weight"),
        ("qwen3", "blk.0.attn_q.bias"),
        ("qwen3", "blk.0.ffn_gate_exps.weight"),
        ("qwen3_moe", "blk.0.ffn_gate.weight"),
        ("qwen3_moe", "blk.2.ffn_gate_inp.bias"),
        ("qwen3_moe", "blk.0.ffn_up_shexp.weight"),
    ],
)
def test_refuses_tensors_that_it_would_not_use(tmp_path: Path, family: str, name: str) -> None:
    path = save_gguf(tmp_path / "a.gguf", family, tensors={name: np.zeros(32, np.float32)})
    with pytest.raises(UnsupportedError, match=f"'{name}' is not part of the {ARCHITECTURES[family]} architecture"):
        open_checkpoint(path)
