"""DeepSeek's GGUF architecture, written by PyPI `gguf` from the golden checkpoints' numbers, in both its forms."""

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
FAMILIES = ("deepseek_v2_lite", "deepseek_v3")
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
BOTH_FORMS = pytest.mark.parametrize("split", [False, True], ids=["kv_b", "k_b and v_b"])
OLD: dict[str, Any] = {"expert_group_count": None, "expert_group_used_count": None}
"""What no file had before autumn 2025; nor any bounds of YaRN."""


@EVERY_FAMILY
@BOTH_FORMS
def test_names_are_those_of_the_gguf_library(family: str, split: bool) -> None:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 3)
    for name in published_numbers(family, split):
        theirs = name.replace("e_score_correction_bias", "e_score_correction.bias")  # as the converter renames it
        assert table.get_name(theirs, (".weight", ".bias")) == gguf_name(name, family)


@EVERY_FAMILY
@BOTH_FORMS
@pytest.mark.parametrize("quantisation", [None, KINDS.BF16, KINDS.Q8_0])
def test_gguf_equals_safetensors(tmp_path: Path, family: str, split: bool, quantisation: KINDS | None) -> None:
    golden = published_numbers(family, split)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", family, quantisation, split=split)) as ours:
        assert set(ours.names) == golden.keys()
        for name, expected in golden.items():
            if quantisation is not None and expected.ndim > 1:
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quantisation), quantisation)
            np.testing.assert_array_equal(ours.get(name).to_float32(), expected, err_msg=name)


def test_shapes_of_the_split_form(tmp_path: Path) -> None:
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", split=True)) as ours:
        assert ours.shape("model.layers.0.self_attn.k_b_proj.weight") == (4, 64, 32)  # [heads, latent, nope]
        assert ours.shape("model.layers.0.self_attn.v_b_proj.weight") == (4, 32, 64)  # [heads, v, latent]


@EVERY_FAMILY
@BOTH_FORMS
def test_the_config_says_what_the_publishers_does(tmp_path: Path, family: str, split: bool) -> None:
    published = golden_config(family)
    if family == "deepseek_v2_lite":  # as in the publisher's file, which the golden one's maker dropped
        published |= {"n_group": 1, "topk_group": 1, "scoring_func": "softmax"}
    else:
        published |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", family, split=split)).config
    assert config == {key: published[key] for key in config}
    assert config.keys() >= {"kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "rope_scaling", "routed_scaling_factor"}


@EVERY_FAMILY
@BOTH_FORMS
def test_logits_are_those_of_the_published_files(tmp_path: Path, family: str, split: bool) -> None:
    expected = expected_of(family)
    with open_checkpoint(save_gguf(tmp_path / "a.gguf", family, KINDS.BF16, split=split)) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    logits = step(model, expected["input_ids"], 0, model.new_kv(8))
    assert np.abs(logits - expected["logits"]).max() <= 2e-3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2048, 64, 1), ("deepseek_v2", "greedy", 1, 1, 32.0)),
        ((5120, 160, 1), ("deepseek_v2", "group_limited_greedy", 8, 3, 32.0)),
        ((7168, 256, 2), ("deepseek_v3", "noaux_tc", 8, 4, 32.0)),
        ((7168, 384, 2), ("deepseek_v3", "noaux_tc", 1, 1, 1.0)),
    ],
    ids=["V2-Lite", "V2", "V3", "Kimi-K2"],
)
def test_older_files_of_published_models(
    tmp_path: Path, sizes: tuple[int, int, int], expected: tuple[str, str, int, int, float]
) -> None:
    changes: dict[str, Any] = dict(zip(("embedding_length", "expert_count", "expert_gating_func"), sizes, strict=True))
    family = "deepseek_v3" if sizes[2] == 2 else "deepseek_v2_lite"
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", family, **changes, **OLD)).config
    said = [config[key] for key in ("model_type", "topk_method", "n_group", "topk_group")]
    assert (*said, config["rope_scaling"]["beta_fast"]) == expected


def test_what_a_file_says_goes_before_what_is_known(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"embedding_length": 7168, "expert_count": 384, "rope__scaling__yarn_beta_fast": 16.0}
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", **changes)).config
    assert (config["n_group"], config["topk_group"], config["rope_scaling"]["beta_fast"]) == (4, 2, 16.0)


def test_files_from_before_v3_score_with_softmax(tmp_path: Path) -> None:
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v2_lite", expert_gating_func=None)).config
    assert config["scoring_func"] == "softmax"


def test_group_limited_softmax(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"expert_group_count": 4, "expert_group_used_count": 2}
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v2_lite", **changes)).config
    assert (config["topk_method"], config["n_group"], config["topk_group"]) == ("group_limited_greedy", 4, 2)


def test_without_yarn(tmp_path: Path) -> None:
    changes: dict[str, Any] = dict.fromkeys(
        f"rope__scaling__{key}" for key in ("type", "factor", "yarn_log_multiplier")
    )
    config = open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", **changes)).config
    assert config["rope_scaling"] is None


def test_layers_that_predict_further_are_left_out(tmp_path: Path) -> None:
    mtp = {f"blk.3.{name}.weight": np.zeros((2, 32), np.float32) for name in ("nextn.eh_proj", "attn_q_a", "new.thing")}
    path = save_gguf(tmp_path / "a.gguf", "deepseek_v3", tensors=mtp, block_count=4, nextn_predict_layers=1)
    with open_checkpoint(path) as ours:
        assert set(ours.names) == published_numbers("deepseek_v3").keys()
        assert ours.config["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"block_count": None}, ModelFileError, "'deepseek2.block_count' is missing"),
        ({"block_count": 2}, ModelFileError, "belongs to layer 2, but deepseek2.block_count is 2"),
        ({"nextn_predict_layers": 3}, ModelFileError, "nextn_predict_layers is 3; expected less"),
        ({"expert_gating_func": 4}, UnsupportedError, "expert_gating_func is 4; Freehold implements 1"),
        ({"expert_gating_func": None}, UnsupportedError, "expert_gating_func is missing, but .* exp_probs"),
        ({"expert_gating_func": 1}, UnsupportedError, "expert_gating_func is softmax, but .* exp_probs"),
        ({"expert_weights_norm": 1}, ModelFileError, "expert_weights_norm' is 1; expected true or false"),
        ({"expert_weights_scale": None}, ModelFileError, "expert_weights_scale' is missing"),
        ({"expert_count": None}, ModelFileError, "'deepseek2.expert_count' is missing"),
        (OLD, UnsupportedError, "expert_group_count' is missing and no published model has these sizes"),
        ({"expert_group_used_count": None}, ModelFileError, "expert_group_used_count' is missing"),
        ({"expert_group_count": 3}, ModelFileError, "expert_group_count is 3 .* out of 16 experts"),
        ({"expert_group_used_count": 5}, ModelFileError, "expert_group_used_count 5; expected groups"),
        ({"attention__key_length": 16}, ModelFileError, "key_length is 16; expected more than rope"),
        ({"attention__head_count_kv": 2}, ModelFileError, "head_count_kv is 2; expected 1 or 4"),
        ({"attention__key_length_mla": 48}, ModelFileError, "attention.key_length is 48; expected 80 of the latent"),
        ({"attention__indexer__top_k": 2048}, UnsupportedError, "indexer.top_k' is not implemented"),
        ({"attention__temperature_scale": 0.1}, UnsupportedError, "temperature_scale' is not implemented"),
        ({"rope__scaling__yarn_log_multiplier": None}, ModelFileError, "yarn_log_multiplier' is missing"),
        ({"rope__scaling__original_context_length": None}, ModelFileError, "context_length' is missing"),
        ({"rope__scaling__type": "none"}, UnsupportedError, "yarn_log_multiplier' is there, but rope"),
        ({"rope__scaling__type": "longrope"}, UnsupportedError, "'longrope'"),
        ({"leading_dense_block_count": None}, ModelFileError, "leading_dense_block_count' is missing"),
    ],
)  # fmt: skip
def test_refuses_keys(tmp_path: Path, changes: dict[str, Any], error: type[FreeholdError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention__key_length": 64}, "attention.key_length is 64; expected 80 of the latent"),
        ({"attention__value_length": 32}, "attention.value_length is 32; expected 64 of the latent"),
        ({"attention__value_length_mla": None}, "'deepseek2.attention.value_length_mla' is missing"),
        ({"attention__key_length_mla": None}, "'deepseek2.attention.key_length_mla' is missing"),
    ],
)
def test_refuses_newer_files_that_contradict_themselves(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", split=True, **change))


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_k.weight", "blk.0.attn_q_a.bias", "blk.0.attn_output.bias", "blk.1.exp_probs_b.weight",
        "blk.1.ffn_gate_up_exps.weight", "blk.3.nextn.eh_proj.weight", "rope_freqs.weight", "exp_probs_b.bias",
    ],
)  # fmt: skip
def test_refuses_tensors_that_it_would_not_use(tmp_path: Path, name: str) -> None:
    path = save_gguf(tmp_path / "a.gguf", "deepseek_v3", tensors={name: np.zeros(32, np.float32)})
    with pytest.raises(UnsupportedError, match=f"'{name}' is not part of the deepseek2 architecture"):
        open_checkpoint(path)


def test_refuses_both_forms_of_one_projection(tmp_path: Path) -> None:
    extra = {"blk.2.attn_v_b.weight": np.zeros((4, 32, 64), np.float32)}
    with pytest.raises(UnsupportedError, match=r"attn_kv_b.weight' and 'blk.2.attn_v_b.weight' hold the same"):
        open_checkpoint(save_gguf(tmp_path / "a.gguf", "deepseek_v3", tensors=extra))
