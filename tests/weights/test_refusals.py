"""Models and quantisations that are not implemented are refused by their own names, on opening."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import ModelFileError, UnsupportedError
from freehold.models import FAMILIES, load_model
from freehold.weights import open_checkpoint
from freehold.weights.gguf_tensors import _ARCHITECTURES
from freehold.weights.refusals import _TABLE, _known
from gguf_files import write_gguf

KINDS = [
    (
        "deepseek_v32",
        "DeepSeek-V3.2, for which Freehold lacks sparse attention.* runs DeepSeek V2, V3, R1 and V3.1",
    ),
    ("deepseek_v4", "DeepSeek-V4, for which Freehold lacks compressed attention with hyper-connections"),
    ("deepseek", "DeepSeek-MoE, before V2"),
    ("deepseek_vl_v2", "a DeepSeek that sees, for which Freehold lacks a vision model's input"),
    ("kimi_k25", "a Kimi that sees, for which Freehold lacks a vision model's input.*kin it runs Kimi-K2"),
    ("kimi_linear", "Kimi-Linear, for which Freehold lacks linear attention"),
    ("qwen3_next", "Qwen3-Next, for which Freehold lacks linear attention.* it runs Qwen2.5, Qwen3 and Qwen3-MoE"),
    ("qwen3_5", "Qwen3.5, for which Freehold lacks linear attention"),
    ("qwen3_5_moe", "Qwen3.5, for which Freehold lacks linear attention"),
    ("qwen2_moe", "Qwen2-MoE, for which Freehold lacks a gated shared expert"),
    ("qwen2_vl", "a Qwen that sees"),
    ("qwen2_5_vl", "a Qwen that sees"),
    ("qwen3_vl_moe", "a Qwen that sees"),
    ("qwen3_omni_moe", "a Qwen that hears"),
    ("llama4", "Llama 4, for which Freehold lacks attention in chunks; of its kin it runs Llama 3"),
    ("mllama", "Llama 3.2 Vision, for which Freehold lacks a vision model's input"),
    ("mixtral", "Mixtral, for which Freehold lacks its kind of experts"),
    ("mistral3", "a model that sees"),
    ("gemma3_text", "Gemma"),
    ("phi3", "Phi"),
    ("minimax", "MiniMax, for which Freehold lacks linear attention"),
    ("minimax_m2", "MiniMax-M2, for which Freehold lacks the form of its layers"),
    ("glm", "a GLM before 4.5, .* it runs GLM-4.5 and 4.6"),
    ("glm4", "a GLM before 4.5"),
    ("chatglm", "a GLM before 4.5"),
    ("glm4v_moe", "a GLM that sees"),
    ("glm_moe_dsa", "GLM-5, for which Freehold lacks sparse attention"),
    ("gpt_neox", "an older model"),
    ("mamba2", "a recurrent model, for which Freehold lacks layers with a recurrent state"),
    ("modernbert", "an encoder"),
]


def safetensors(directory: Path, **config: Any) -> Path:
    """A checkpoint of one small tensor."""
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.mark.parametrize(("kind", "said"), KINDS)
def test_known_models_are_refused_on_opening(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(UnsupportedError, match=f"model_type '{kind}' is not implemented: this is {said}") as caught:
        open_checkpoint(safetensors(tmp_path, model_type=kind, quantization_config={"quant_method": "awq"}))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("architecture", ["deepseek32", "qwen3next", "qwen35moe", "kimi-linear", "glm4", "gemma3n"])
def test_gguf_files_are_refused_in_the_same_words(tmp_path: Path, architecture: str) -> None:
    row = _known(architecture)
    assert row is not None
    path = write_gguf(tmp_path / "a.gguf", {}, architecture)
    said = f"the architecture '{architecture}' is not implemented: this is {row.title}, for which Freehold lacks"
    with pytest.raises(UnsupportedError, match=rf"{said} {row.missing}.*\. Implemented: gpt-oss, .*qwen3"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["mystery", None, 7, "x" * 999])
def test_unknown_models_are_told_what_there_is(tmp_path: Path, kind: Any) -> None:
    with (
        open_checkpoint(safetensors(tmp_path, model_type=kind)) as checkpoint,
        pytest.raises(UnsupportedError, match=r"model_type .* is not implemented\. Implemented: .*gpt_oss, .*llama"),
    ):
        load_model(checkpoint, precision="reference")


def test_nothing_implemented_is_in_the_table() -> None:
    assert [kind for kind in (*FAMILIES, *_ARCHITECTURES) if _known(kind)] == []
    patterns = [pattern for row in _TABLE for pattern in row.names.split()]
    assert len(set(patterns)) == len(patterns)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, r"AWQ \(quantization_config"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fbgemm_fp8"}, "FBGEMM's FP8, with a scale for each row"),
        ({"quant_method": "mxfp4"}, "MXFP4, which is read for gpt-oss"),
        ({"quant_method": "modelopt"}, "NVIDIA's ModelOpt"),
        ({"quant_method": "new_thing"}, "'new_thing'"),
        ({"quant_method": ["fp8"]}, r"\['fp8'\]"),
        ({"bits": 4, "group_size": 64}, "MLX"),
        ({"weight_block_size": [128, 128]}, "a method it does not name"),
    ],
)
def test_quantised_weights_are_refused_by_their_method(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=f"quantised by '?{said}.*bfloat16 or FP8, or the model as GGUF"):
        open_checkpoint(safetensors(tmp_path, model_type="llama", quantization_config=settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_block_size": None},
        {"weight_block_size": [1, 128]},
        {"fmt": "e5m2", "weight_block_size": [128, 128]},
    ],
)
def test_other_kinds_of_fp8_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"of FP8 Freehold reads only .* in bfloat16 or as GGUF instead"):
        open_checkpoint(
            safetensors(tmp_path, model_type="llama", quantization_config={"quant_method": "fp8", **settings})
        )


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_other_keys_that_say_quantised(tmp_path: Path, key: str) -> None:
    method = "compressed-tensors" if key == "compression_config" else "MLX"
    with pytest.raises(UnsupportedError, match=rf"{method}.*\({key} of config.json\)"):
        open_checkpoint(safetensors(tmp_path, model_type="llama", **{key: {"bits": 4}}))
    with pytest.raises(ModelFileError, match=f"{key} of config.json is 4; expected an object"):
        open_checkpoint(safetensors(tmp_path, model_type="llama", **{key: 4}))


@pytest.mark.parametrize(
    "settings", [None, {}, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}]
)
def test_what_is_read_passes(tmp_path: Path, settings: Any) -> None:
    open_checkpoint(safetensors(tmp_path, model_type="llama", quantization_config=settings)).close()
