"""Every model that `synth` writes: sizes, names and keys as published, and one set of numbers in both containers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.hub.catalog import CatalogEntry, load_catalog
from freehold.models import load_model
from freehold.weights import open_checkpoint
from freehold.weights.synth import SHAPES, plan_files, write_checkpoint
from freehold.weights.synth.containers import PlannedFile
from freehold.weights.synth.tensors import Stored, Tensor
from golden_models import GOLDEN, step
from synth_files import Arrays, as_gguf, read_gguf, read_safetensors
from tiny_shapes import tiny

PARAMETERS = {
    "smollm2": 134_515_008,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "deepseek-v2-lite": 15_706_484_224,
}
BILLIONS = {
    "gpt-oss-20b": 20.915,
    "gpt-oss-120b": 116.829,
    "qwen3-30b-a3b": 30.53,
    "qwen3-235b-a22b": 235.1,
    "deepseek-v2": 235.74,
    "deepseek-v3": 671.03,
    "deepseek-r1": 671.03,
    "deepseek-v3.1": 671.03,
    "kimi-k2": 1026.4,
    "glm-4.5": 352.8,
    "glm-4.5-air": 106.9,
    "glm-4.6": 352.8,
}
KINDS = ("llama-3.1-8b", "llama-3.2-1b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b")
SCORED = ("deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "kimi-k2", "glm-4.5", "glm-4.5-air")


def tensors_of(name: str) -> Iterator[Tensor]:
    published = SHAPES[name]
    yield from published.tensors(published.config)


def stored_in(files: Any) -> list[Stored]:
    return [part for file in files for part in file.parts if isinstance(part, Stored)]


@pytest.mark.parametrize("name", SHAPES)
def test_the_published_number_of_parameters(name: str) -> None:
    found = sum(tensor.n_parameters for tensor in tensors_of(name) if tensor.numbers.safetensors)
    if name in PARAMETERS:
        assert found == PARAMETERS[name]
    else:
        digits = len(str(BILLIONS[name]).partition(".")[2])
        assert round(found / 1e9, digits) == BILLIONS[name]


def test_the_catalogue_says_the_same() -> None:
    entries = load_catalog()
    assert SHAPES.keys() == {name for name, entry in entries.items() if entry.shapes}
    for name, published in SHAPES.items():
        entry = entries[name]
        assert (entry.title, entry.licence) == (published.title, published.licence)
        if not isinstance(entry, CatalogEntry):
            encoded = (
                (tensor, encoding) for tensor in tensors_of(name) for encoding in tensor.numbers.safetensors.values()
            )
            assert entry.n_bytes == sum(max(1, t.n_experts) * encoding.n_bytes(t.shape) for t, encoding in encoded)


@pytest.mark.parametrize(
    ("name", "n_tensors"), [("qwen3-30b-a3b", 18_867), ("deepseek-v2-lite", 5291), ("llama-3.1-8b", 291)]
)
def test_the_published_number_of_tensors(name: str, n_tensors: int) -> None:
    stored = stored_in(plan_files(SHAPES[name], "safetensors"))
    assert len({tensor.name for tensor in stored}) == len(stored) == n_tensors


@pytest.mark.parametrize(
    ("name", "directory"), [("llama-3.1-8b", "llama"), ("qwen2.5-7b", "qwen2"), ("qwen3-8b", "qwen3")]
)
def test_the_names_of_a_checkpoint_that_transformers_wrote(name: str, directory: str) -> None:
    with open_checkpoint(GOLDEN / directory) as golden:
        expected = {re.sub(r"layers\.\d+", "layers.0", name) for name in golden.names} - {"lm_head.weight"}
    found = {re.sub(r"layers\.\d+", "layers.0", t.name) for t in tensors_of(name) if t.name} - {"lm_head.weight"}
    assert found == expected


def test_the_shapes_of_a_layer_of_deepseek_v3() -> None:
    stored = stored_in(plan_files(SHAPES["deepseek-v3"].cut(4), "safetensors"))
    found = {t.name.removeprefix("model.layers.3."): (t.dtype, t.shape) for t in stored if ".layers.3." in t.name}
    quantised = {
        "self_attn.q_a_proj": ((1536, 7168), (12, 56)),
        "self_attn.q_b_proj": ((24576, 1536), (192, 12)),
        "self_attn.kv_a_proj_with_mqa": ((576, 7168), (5, 56)),
        "self_attn.kv_b_proj": ((32768, 512), (256, 4)),
        "self_attn.o_proj": ((7168, 16384), (56, 128)),
        "mlp.experts.255.gate_proj": ((2048, 7168), (16, 56)),
        "mlp.experts.0.down_proj": ((7168, 2048), (56, 16)),
        "mlp.shared_experts.up_proj": ((2048, 7168), (16, 56)),
    }
    for name, (shape, scales) in quantised.items():
        assert found[f"{name}.weight"] == ("F8_E4M3", shape)
        assert found[f"{name}.weight_scale_inv"] == ("F32", scales)
    assert found["mlp.gate.weight"] == ("BF16", (256, 7168))
    assert found["mlp.gate.e_score_correction_bias"] == ("F32", (256,))
    assert found["self_attn.kv_a_layernorm.weight"] == ("BF16", (512,))
    names = {t.name: (t.dtype, t.shape) for t in stored}
    assert names["lm_head.weight"] == ("BF16", (129280, 7168))
    assert names["model.layers.2.mlp.down_proj.weight"] == ("F8_E4M3", (7168, 18432))


def test_the_shapes_of_the_same_in_gguf() -> None:
    stored = stored_in(plan_files(SHAPES["deepseek-v3"].cut(4), "gguf", quant="q4_k"))
    found = {t.name: (t.dtype, t.shape) for t in stored}
    assert found["blk.0.attn_k_b.weight"] == ("Q8_0", (128, 512, 128))
    assert found["blk.0.attn_v_b.weight"] == ("Q8_0", (128, 128, 512))
    assert found["blk.3.ffn_down_exps.weight"] == ("Q4_K", (256, 7168, 2048))
    assert found["blk.3.ffn_gate_shexp.weight"] == ("Q4_K", (2048, 7168))
    assert found["blk.3.ffn_gate_inp.weight"] == ("F32", (256, 7168))
    assert found["blk.3.exp_probs_b.bias"] == ("F32", (256,))
    assert found["output.weight"] == ("Q8_0", (129280, 7168))


@pytest.mark.parametrize("name", SHAPES)
def test_gguf_has_no_name_that_llama_cpp_does_not_know(name: str) -> None:
    published = tiny(name)
    architecture = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == published.architecture)
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[architecture]}
    for tensor in published.tensors(published.config):
        for gguf_name in tensor.gguf_names:
            assert re.sub(r"^blk\.\d+", "blk.0", gguf_name).rpartition(".")[0] in known
    sections = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
    values = [value for section in sections for value in vars(section).values() if isinstance(value, str)]
    keys = {value.replace("{arch}", published.architecture) for value in values}
    assert published.gguf_keys(published.config).keys() - {"general.file_type"} <= keys


@pytest.mark.parametrize("quant", ["q8_0", "q4_k"])
@pytest.mark.parametrize("name", [*KINDS, *SCORED])
def test_both_containers_hold_the_same(tmp_path: Path, name: str, quant: Any) -> None:
    """Read without Freehold."""
    published = (
        tiny(name, hidden_size=256, moe_intermediate_size=288) if name in SCORED else tiny(name, hidden_size=256)
    )
    found = read_safetensors(write_checkpoint(published, tmp_path / "a", quant=quant))
    other = read_gguf(write_checkpoint(published, tmp_path / "b", container="gguf", quant=quant))
    expected = as_gguf(found, published)
    assert other.keys() - {"rope_freqs.weight"} == expected.keys()
    for tensor, numbers in expected.items():
        np.testing.assert_array_equal(other[tensor], numbers, err_msg=tensor)


def test_pieces_of_any_size_hold_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = tensors_read(tmp_path / "whole")
    monkeypatch.setattr("freehold.weights.synth.tensors.PIECE_NUMBERS", 640)
    test_both_containers_hold_the_same(tmp_path, "deepseek-v3", "q8_0")
    for name, numbers in tensors_read(tmp_path / "pieces").items():
        np.testing.assert_array_equal(numbers, whole[name], err_msg=name)


def tensors_read(directory: Path) -> Arrays:
    """Of a model without numbers of which a piece could end within a word of the generator."""
    return read_safetensors(write_checkpoint(tiny("qwen3-30b-a3b"), directory))


@pytest.mark.parametrize("quant", ["q8_0", "q4_k"])
@pytest.mark.parametrize("name", [*KINDS, *SCORED])
def test_both_containers_give_the_same_logits(tmp_path: Path, name: str, quant: Any) -> None:
    published = tiny(name, hidden_size=256, **({"moe_intermediate_size": 288} if name in SCORED else {}))
    logits = []
    for container in ("safetensors", "gguf"):
        path = write_checkpoint(published, tmp_path / container, container=container, quant=quant)
        with open_checkpoint(path) as checkpoint:
            model = load_model(checkpoint, precision="reference")
        logits.append(step(model, np.arange(7, 290, 9), 0, model.new_kv(8)))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)  # llama3 scaling: stored factors, rounded to float32
    assert 1 < logits[0].std() < 4


@pytest.mark.parametrize(("name", "n_layers"), [("qwen3-30b-a3b", 48), ("qwen2.5-32b", 64)])
def test_logits_stay_of_one_scale_over_many_layers(tmp_path: Path, name: str, n_layers: int) -> None:
    path = write_checkpoint(tiny(name, num_hidden_layers=n_layers), tmp_path / "a")
    with open_checkpoint(path) as checkpoint:
        model = load_model(checkpoint, precision="reference")
    logits = step(model, np.arange(7, 290, 9), 0, model.new_kv(8))
    assert 1 < logits.std() < 4
    assert np.abs(logits).max() < 20


def test_the_factors_of_llama3_scaling(tmp_path: Path) -> None:
    found = read_gguf(write_checkpoint(tiny("llama-3.2-1b", head_dim=64), tmp_path / "a", container="gguf", layers=1))
    factors = found["rope_freqs.weight"]
    assert factors.shape == (32,)
    assert (factors[0], factors[-1]) == (1, 32)
    assert (np.diff(factors) >= 0).all()
    # Of wavelength 2 pi 500000^(30/64) = 2,948: 8192 / 2948 = 2.7787 turns, 0.5929 of the way from 1 to 4.
    assert factors[15] == pytest.approx(1 / ((1 - 0.59290) / 32 + 0.59290), rel=1e-4)


def test_the_keys_of_latent_attention() -> None:
    keys = SHAPES["deepseek-v3"].gguf_keys(SHAPES["deepseek-v3"].config)
    expected = {
        "attention.head_count": 128,
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.key_length_mla": 192,
        "attention.value_length": 512,
        "attention.value_length_mla": 128,
        "attention.q_lora_rank": 1536,
        "expert_gating_func": 2,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
        "leading_dense_block_count": 3,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }
    assert {key: keys[f"deepseek2.{key}"] for key in expected} == expected
    lite = SHAPES["deepseek-v2-lite"].gguf_keys(SHAPES["deepseek-v2-lite"].config)
    assert lite["deepseek2.expert_gating_func"] == 1
    assert lite["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    assert not lite.keys() & {"deepseek2.attention.q_lora_rank", "deepseek2.expert_weights_norm"}


@pytest.mark.parametrize(("quant", "gigabytes"), [("q8_0", 32.5), ("q4_k", 17.5)])
def test_the_size_of_a_file(quant: Any, gigabytes: float) -> None:
    (file,) = plan_files(SHAPES["qwen3-30b-a3b"], "gguf", quant=quant)
    assert isinstance(file, PlannedFile)
    assert file.n_bytes / 1e9 == pytest.approx(gigabytes, abs=0.06)
