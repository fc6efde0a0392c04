"""GLM-4.5's GGUF architecture, written by PyPI `gguf` from the golden checkpoint's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.errors import FreeholdError, ModelFileError, UnsupportedError
from freehold.models import load_model
from freehold.weights import open_checkpoint
from gguf_moe_files import gguf_name, published_numbers, save_gguf
from golden_models import expected_of, step
from qwen_files import golden_config

KINDS = gguf.GGMLQuantizationType
FAMILY = "glm4_moe"


def test_names_are_those_of_the_gguf_library() -> None:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4_MOE, 3)
    for name in published_numbers(FAMILY):
        theirs = name.replace("e_score_correction_bias", "e_score_correction.bias")  # as the converter renames it
        assert table.get_name(theirs, (".weight", ".bias")) == gguf_name(name, FAMILY)


@pytest.mark.parametrize("quantisation", [None, KINDS.BF16, KINDS.Q8_0])
def test_gguf_equals_safetensors(tmp_path: Path, quantisation: KINDS | None) -> None:
    golden = published_numbers(FAMILY)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, quantisation)) as ours:
        assert set(ours.names) == golden.keys()
        for name, expected in golden.items():
            if quantisation is not None and expected.ndim > 1:
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quantisation), quantisation)
            np.testing.assert_array_equal(ours.get(name).to_float32(), expected, err_msg=name)


def test_the_config_says_what_the_publishers_does(tmp_path: Path) -> None:
    published = {**golden_config(FAMILY), "rope_scaling": None}
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY)).config
    assert config == {key: published[key] for key in config}
    assert config.keys() >= {"head_dim", "partial_rotary_factor", "use_qk_norm", "attention_bias", "n_group"}


def test_logits_are_those_of_the_published_files(tmp_path: Path) -> None:
    expected = expected_of(FAMILY)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, KINDS.BF16)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    logits = step(model, expected["input_ids"], 0, model.new_kv(8))
    assert np.abs(logits - expected["logits"]).max() <= 2e-3


def test_files_from_before_the_keys_of_groups_have_one(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"expert_group_count": None, "expert_group_used_count": None, "expert_gating_func": None}
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, **changes)).config
    assert (config["n_group"], config["topk_group"]) == (1, 1)


def test_air_has_no_head_norms(tmp_path: Path) -> None:
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, without="attn_[qk]_norm")) as ours:
        assert ours.config["use_qk_norm"] is False
        assert not any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in ours.names)


def test_yarn(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 1024,
        "rope__scaling__yarn_beta_fast": 16.0,
    }
    assert open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, **changes)).config["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0,
        "beta_slow": 1.0,
    }  # fmt: skip


def test_the_layer_that_predicts_further_is_left_out(tmp_path: Path) -> None:
    modules = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "nextn.embed_tokens", "nextn.shared_head_head",
               "nextn.shared_head_norm", "attn_q", "ffn_gate_exps")  # fmt: skip
    mtp: dict[str, np.ndarray] = {f"blk.3.{module}.weight": np.zeros((2, 32), np.float32) for module in modules}
    mtp["blk.3.exp_probs_b.bias"] = np.zeros(8, np.float32)
    path = save_gguf(tmp_path / "a.gguf", FAMILY, tensors=mtp, block_count=4, nextn_predict_layers=1)
    with open_checkpoint(path) as ours:
        assert set(ours.names) == published_numbers(FAMILY).keys()
        assert ours.config["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"block_count": 2}, ModelFileError, "belongs to layer 2, but glm4moe.block_count is 2"),
        ({"nextn_predict_layers": 3}, ModelFileError, "nextn_predict_layers is 3; expected less than block_count, 3"),
        ({"expert_gating_func": 1}, UnsupportedError, "'glm4moe.expert_gating_func' is 1; Freehold implements 2"),
        ({"expert_weights_norm": None}, ModelFileError, "'glm4moe.expert_weights_norm' is missing"),
        ({"expert_weights_scale": None}, ModelFileError, "'glm4moe.expert_weights_scale' is missing"),
        ({"attention__key_length": None}, ModelFileError, "'glm4moe.attention.key_length' is missing"),
        ({"attention__value_length": 64}, ModelFileError, "key_length is 32; expected attention.value_length"),
        ({"rope__dimension_count": 48}, ModelFileError, "rope.dimension_count, 48, to be even and no more"),
        ({"rope__dimension_count": 15}, ModelFileError, "rope.dimension_count, 15, to be even and no more"),
        ({"rope__dimension_sections": [8, 12, 12, 0]}, UnsupportedError, "dimension_sections' is not implemented"),
        ({"attention__sliding_window": 512}, UnsupportedError, "sliding_window' is not implemented"),
    ],
)
def test_refuses_keys(tmp_path: Path, changes: dict[str, Any], error: type[FreeholdError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(save_gguf(tmp_path / "a.gguf", FAMILY, **changes))


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_output.bias", "blk.0.ffn_norm.weight", "blk.0.ffn_up.bias", "blk.1.ffn_gate_inp.bias",
        "blk.1.exp_probs_b.weight", "blk.2.nextn.enorm.weight", "rope_freqs.weight",
    ],
)  # fmt: skip
def test_refuses_tensors_that_it_would_not_use(tmp_path: Path, name: str) -> None:
    path = save_gguf(tmp_path / "a.gguf", FAMILY, tensors={name: np.zeros(32, np.float32)})
    with pytest.raises(UnsupportedError, match=f"'{name}' is not part of the glm4moe architecture"):
        open_checkpoint(path)
