"""gpt-oss files that are damaged, incomplete or of another kind: refused on opening, by name, with a remedy."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt_oss_files as files
from freehold.errors import FreeholdError, ModelFileError, NotFoundError, UnsupportedError
from freehold.models import Precision, load_model
from freehold.weights import open_checkpoint
from gpt_oss_files import Stored

EXPERTS = "model.layers.2.mlp.experts."
GOLDEN = files.read_golden()
ORIGINAL = files.original_tensors()


def reshaped(tensor: Stored, *shape: int, dtype: str | None = None) -> Stored:
    """Another shape and perhaps another type, with zeros for data."""
    dtype = dtype or tensor.dtype
    n_bytes = int(np.prod(shape)) * {"U8": 1, "BF16": 2, "F32": 4}[dtype]
    return Stored(dtype, shape, bytes(n_bytes))


def refusal(directory: Path, error: type[FreeholdError]) -> str:
    """The message with which the directory is refused."""
    with pytest.raises(error) as caught:
        open_checkpoint(directory)
    assert type(caught.value) is error
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_a_missing_shard(tmp_path: Path) -> None:
    directory = files.save_sharded(tmp_path, GOLDEN, files.golden_config(), 3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    message = refusal(directory, NotFoundError)
    assert "1 of the 3 shards its index names are missing: 'model-00002-of-00003.safetensors'" in message
    assert "the download is incomplete, so fetch it again" in message


def test_a_missing_shard_of_a_series(tmp_path: Path) -> None:
    directory = files.save_sharded(tmp_path, ORIGINAL, files.ORIGINAL_CONFIG, 3)
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model-00003-of-00003.safetensors").unlink()
    message = refusal(directory, NotFoundError)
    assert "1 of the 3 shards of its numbered series are missing: 'model-00003-of-00003.safetensors'" in message


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("gate_up_proj_blocks", (8, 320, 6, 8), r"gate_up_proj_blocks' is U8 \[8, 320, 6, 8\]; expected U8 \[experts"),
        ("gate_up_proj_blocks", (8, 320, 96), r"is U8 \[8, 320, 96\]; expected U8 \[experts, rows, blocks, 16\]"),
        ("gate_up_proj_blocks", (0, 320, 6, 16), r"is U8 \[0, 320, 6, 16\]; expected"),
        ("gate_up_proj_blocks", (8, 320, 5, 16), r"gate_up_proj_scales' is U8 \[8, 320, 6\]; .* U8 \[8, 320, 5\]"),
        ("gate_up_proj_scales", (8, 160, 6), r"gate_up_proj_scales' is U8 \[8, 160, 6\]; .* U8 \[8, 320, 6\]"),
        ("down_proj_scales", (8, 192, 5, 1), r"down_proj_scales' is U8 \[8, 192, 5, 1\]; .* U8 \[8, 192, 5\]"),
        ("gate_up_proj_bias", (8, 319), r"gate_up_proj_bias' has 319 rows; expected gate and up in turn"),
        ("down_proj_bias", (1536,), r"down_proj_bias' has shape \[1536\]; expected \[experts, rows\]"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, name: str, replacement: tuple[int, ...], message: str) -> None:
    tensors = GOLDEN | {EXPERTS + name: reshaped(GOLDEN[EXPERTS + name], *replacement)}
    assert re.search(message, refusal(files.save_directory(tmp_path, tensors, files.golden_config()), ModelFileError))


def test_an_odd_number_of_gate_and_up_rows(tmp_path: Path) -> None:
    odd = {"gate_up_proj_blocks": (8, 319, 6, 16), "gate_up_proj_scales": (8, 319, 6)}
    tensors = GOLDEN | {EXPERTS + name: reshaped(GOLDEN[EXPERTS + name], *shape) for name, shape in odd.items()}
    message = refusal(files.save_directory(tmp_path, tensors, files.golden_config()), ModelFileError)
    assert "gate_up_proj_blocks' has 319 rows; expected gate and up in turn, so even" in message


@pytest.mark.parametrize("name", ["gate_up_proj_blocks", "down_proj_scales"])
def test_blocks_and_scales_are_bytes(tmp_path: Path, name: str) -> None:
    tensor = GOLDEN[EXPERTS + name]
    tensors = GOLDEN | {EXPERTS + name: reshaped(tensor, *tensor.shape, dtype="BF16")}
    message = refusal(files.save_directory(tmp_path, tensors, files.golden_config()), ModelFileError)
    assert f"{name}' is BF16" in message


@pytest.mark.parametrize(("lost", "left"), [("blocks", "scales"), ("scales", "blocks")])
def test_half_of_a_pair(tmp_path: Path, lost: str, left: str) -> None:
    tensors = files.without(GOLDEN, [f"{EXPERTS}down_proj_{lost}"])
    message = refusal(files.save_directory(tmp_path, tensors, files.golden_config()), ModelFileError)
    assert f"{EXPERTS}down_proj_{left}' has no {lost} beside it; fetch the model again" in message


@pytest.mark.parametrize("precision", ["exact", "reference"])
@pytest.mark.parametrize(("kind", "position"), [("gate", (5, 62)), ("up", (5, 63)), ("down", (7, 0))])
@pytest.mark.parametrize("layout", ["published", "original", "gguf"])
def test_a_scale_that_is_no_number(
    tmp_path: Path, kind: str, position: tuple[int, int], layout: str, precision: Precision
) -> None:
    """Found while packing, where every scale is read anyway; `get` reads none."""
    expert, row = position
    if layout == "gguf":
        gguf = files.gguf_tensors()
        gguf[f"blk.2.ffn_{kind}_exps.weight"][expert, row // 2, 2 * 17] = 255
        path = files.save_gguf(tmp_path / "a.gguf", gguf)
    else:
        name = EXPERTS + {"down": "down_proj_scales"}.get(kind, "gate_up_proj_scales")
        tensors, config = GOLDEN, files.golden_config()
        if layout == "original":
            name = f"block.2.mlp.mlp{2 if kind == 'down' else 1}_weight.scales"
            tensors, config = ORIGINAL, files.ORIGINAL_CONFIG
        scales = tensors[name].bytes().copy()
        scales[(*position, 2)] = 255
        damaged = dataclasses.replace(tensors[name], data=scales.tobytes())
        path = files.save_directory(tmp_path, tensors | {name: damaged}, config)
    expected = f"expert {expert} of tensor '{EXPERTS}{kind}_proj.weight' has an MXFP4 scale of 255.*fetch it again"
    with open_checkpoint(path) as checkpoint, pytest.raises(ModelFileError, match=expected):
        load_model(checkpoint, precision=precision)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quant_method": "fp8"}, UnsupportedError, "quantised by 'fp8'; Freehold reads gpt-oss in 'mxfp4'"),
        ({}, UnsupportedError, "quantised by None"),
        ("mxfp4", ModelFileError, "quantization_config of config.json is 'mxfp4'; expected an object"),
        ({"quant_method": "mxfp4", "group_size": 16}, UnsupportedError, "'group_size' of quantization_config"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": "lm_head"}, ModelFileError, "expected a list of names"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": [1]}, ModelFileError, "expected a list of names"),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.experts"]},
            UnsupportedError,
            "keeps 'model.layers.0.mlp.experts' out of MXFP4",
        ),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp"]},
            UnsupportedError,
            "keeps 'model.layers.*.mlp' out of MXFP4",
        ),
    ],
)
def test_another_quantisation(tmp_path: Path, settings: Any, error: type[FreeholdError], message: str) -> None:
    config = files.golden_config() | {"quantization_config": settings}
    assert message in refusal(files.save_directory(tmp_path, GOLDEN, config), error)


def test_experts_converted_to_bfloat16(tmp_path: Path) -> None:
    gone = [f"{EXPERTS}gate_up_proj_blocks", f"{EXPERTS}gate_up_proj_scales"]
    tensors = files.without(GOLDEN, gone) | {f"{EXPERTS}gate_up_proj": Stored("BF16", (8, 192, 320), bytes(983040))}
    config = files.golden_config() | {"quantization_config": None}
    message = refusal(files.save_directory(tmp_path, tensors, config), UnsupportedError)
    assert f"'{EXPERTS}gate_up_proj' holds experts converted to BF16; Freehold reads gpt-oss as published" in message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_experts": None}, ModelFileError, "'num_experts' of config.json is None; expected a whole number"),
        ({"num_experts": True}, ModelFileError, "'num_experts' of config.json is True"),
        ({"head_dim": 0}, ModelFileError, "'head_dim' of config.json is 0"),
        ({"num_hidden_layers": 1025}, ModelFileError, "claims 1025 layers; expected at most 1024"),
        ({"rope_scaling_factor": "x"}, ModelFileError, "'rope_scaling_factor' of config.json is 'x'"),
        ({"rope_theta": -1}, ModelFileError, "'rope_theta' of config.json is -1; expected a positive number"),
        ({"initial_context_length": 1.5}, ModelFileError, "'initial_context_length' of config.json is 1.5"),
        ({"packed_geglu": True}, UnsupportedError, "the key 'packed_geglu' of config.json is not known"),
        ({"model_type": "mixtral"}, UnsupportedError, "config.json says 'mixtral', but the tensors are those of"),
        ({"num_key_value_heads": 4}, ModelFileError, r"has shape \[384\]; the config calls for 256 \+ 128 \+ 128"),
    ],
)
def test_original_config(tmp_path: Path, changes: Any, error: type[FreeholdError], message: str) -> None:
    directory = files.save_directory(tmp_path, ORIGINAL, files.ORIGINAL_CONFIG | changes)
    assert re.search(message, refusal(directory, error))


@pytest.mark.parametrize("key", sorted(files.ORIGINAL_CONFIG.keys() - {"swiglu_limit"}))
def test_original_config_without_a_key(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in files.ORIGINAL_CONFIG.items() if name != key}
    message = refusal(files.save_directory(tmp_path, ORIGINAL, config), ModelFileError)
    assert f"config.json lacks the key '{key}'" in message


@pytest.mark.parametrize("name", ["block.0.mlp.mlp1_weight", "block.0.attn.extra", "block.01.attn.sinks", "other"])
def test_a_tensor_the_original_layout_has_not(tmp_path: Path, name: str) -> None:
    directory = files.save_directory(tmp_path, ORIGINAL | {name: Stored("F32", (1,), bytes(4))}, files.ORIGINAL_CONFIG)
    assert f"'{name}' is not part of the original layout" in refusal(directory, UnsupportedError)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(["published", "original"]),
    picked=st.integers(0, 1000),
    shape=st.lists(st.integers(0, 12), max_size=5),
    dtype=st.sampled_from(["U8", "BF16", "F32"]),
)
def test_any_tensor_of_any_shape_is_read_or_refused(
    tmp_path: Path, layout: str, picked: int, shape: list[int], dtype: str
) -> None:
    tensors, config = (GOLDEN, files.golden_config()) if layout == "published" else (ORIGINAL, files.ORIGINAL_CONFIG)
    layer = {name: tensor for name, tensor in tensors.items() if re.search(r"(layers|block)\.0\.", name)}
    name = list(layer)[picked % len(layer)]
    try:
        checkpoint = open_checkpoint(
            files.save_directory(tmp_path, layer | {name: reshaped(layer[name], *shape, dtype=dtype)}, config)
        )
        for found in checkpoint.names:
            checkpoint.get(found).to_float32()
            checkpoint.release(found)
    except FreeholdError:
        pass


def test_names_not_in_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(files.GOLDEN)
    for name in ("absent", f"{EXPERTS}gate_up_proj_blocks"):
        for method in (checkpoint.get, checkpoint.release):
            with pytest.raises(NotFoundError, match=f"has no tensor '{name}'"):
                method(name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"expert_count": None}, ModelFileError, "'gpt-oss.expert_count' is missing"),
        ({"expert_used_count": 0}, ModelFileError, "'gpt-oss.expert_used_count' is 0; expected a whole number"),
        ({"attention__sliding_window": None}, ModelFileError, "'gpt-oss.attention.sliding_window' is missing"),
        ({"block_count": 1 << 30}, ModelFileError, "claims 1073741824 layers; expected at most 1024"),
        ({"block_count": 3}, ModelFileError, "belongs to layer 3, but gpt-oss.block_count is 3"),
        ({"attention__sliding_window_pattern": 3}, UnsupportedError, "pattern' is 3; Freehold implements 2"),
        ({"expert_gating_func": 1}, UnsupportedError, "expert_gating_func' is 1; Freehold implements 3"),
        ({"swiglu_clamp_exp": [7.0]}, UnsupportedError, "swiglu_clamp_exp' is not implemented for the gpt-oss"),
    ],
)
def test_gguf_keys(tmp_path: Path, changes: Any, error: type[FreeholdError], message: str) -> None:
    assert message in refusal(files.save_gguf(tmp_path / "a.gguf", **changes), error)


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_norm.weight", "rope_freqs.weight"])
def test_gguf_tensors_of_another_kind(tmp_path: Path, name: str) -> None:
    tensors = files.gguf_tensors() | {name: np.zeros(4, np.float32)}
    message = refusal(files.save_gguf(tmp_path / "a.gguf", tensors), UnsupportedError)
    assert f"'{name}' is not part of the gpt-oss architecture" in message


def test_an_index_that_names_an_absent_tensor(tmp_path: Path) -> None:
    directory = files.save_sharded(tmp_path, GOLDEN, files.golden_config(), 2)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][f"{EXPERTS}absent"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    message = refusal(directory, NotFoundError)
    assert f"tensors its index names are missing: '{EXPERTS}absent'; the download is incomplete" in message
