"""Checkpoints: one form for safetensors and GGUF, and one clear message for everything that is not a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.errors import FreeholdError, ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import FORMATS
from freehold.weights import Checkpoint, open_checkpoint
from gguf_files import permute_like_llama_cpp, write_gguf

GOLDEN = Path(__file__).parents[1] / "golden" / "llama"
KINDS = gguf.GGMLQuantizationType
LLAMA_KEYS: dict[str, Any] = {
    "llama__block_count": 3,
    "llama__context_length": 8192,
    "llama__embedding_length": 192,
    "llama__feed_forward_length": 512,
    "llama__attention__head_count": 6,
    "llama__attention__head_count_kv": 2,
    "llama__attention__key_length": 32,
    "llama__attention__value_length": 32,
    "llama__attention__layer_norm_rms_epsilon": 1e-5,
    "llama__rope__freq_base": 500000.0,
    "llama__rope__dimension_count": 32,
    "llama__vocab_size": 512,
    "tokenizer__ggml__bos_token_id": 1,
    "tokenizer__ggml__eos_token_id": 2,
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def to_gguf(checkpoint: Checkpoint, quantisation: gguf.GGMLQuantizationType | None = None) -> dict[str, Any]:
    """The tensors as llama.cpp's converter writes them."""
    tensors: dict[str, Any] = {}
    for name in checkpoint.names:
        numbers = checkpoint.get(name).to_float32()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            numbers = permute_like_llama_cpp(numbers, 6 if "q_proj" in name else 2)
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        tensors[name] = (numbers, quantisation) if quantisation is not None and numbers.ndim == 2 else numbers
    return tensors


@pytest.fixture
def golden() -> Iterator[Checkpoint]:
    with open_checkpoint(GOLDEN) as checkpoint:
        yield checkpoint


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A directory that opens: one tensor, a config."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    header = json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def llama_gguf(path: Path, tensors: dict[str, Any] | None = None, architecture: str = "llama", **changes: Any) -> Path:
    """A llama GGUF of one tensor; changes replace keys, None removes one."""
    keys = {key: value for key, value in (LLAMA_KEYS | changes).items() if value is not None}
    return write_gguf(path, tensors or {"token_embd.weight": np.zeros((512, 192), np.float32)}, architecture, **keys)


def test_opens_the_golden_directory(golden: Checkpoint) -> None:
    assert golden.kind == "safetensors"
    assert golden.config["model_type"] == "llama"
    assert golden.config["rope_scaling"]["rope_type"] == "llama3"
    assert len(golden.names) == 29
    assert golden.n_bytes == sum(golden.get(name).n_bytes for name in golden.names)
    assert golden.get("model.layers.2.mlp.down_proj.weight").shape == (192, 512)
    assert golden.gguf_metadata is None
    assert golden.tokenizer_json is None
    assert golden.chat_template is None
    assert golden.generation_config == {}
    assert open_checkpoint(str(GOLDEN)).names == golden.names


@pytest.mark.parametrize("quantisation", [None, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_1])
def test_gguf_equals_safetensors(tmp_path: Path, golden: Checkpoint, quantisation: gguf.GGMLQuantizationType) -> None:
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    tensors = to_gguf(golden, quantisation) | {"rope_freqs.weight": factors}
    with open_checkpoint(llama_gguf(tmp_path / "model.gguf", tensors)) as ours:
        assert ours.kind == "gguf"
        assert set(ours.names) == {*golden.names, "rope_freqs.weight"}
        np.testing.assert_array_equal(ours.get("rope_freqs.weight").to_float32(), factors)
        for name in golden.names:
            expected = golden.get(name).to_float32()
            if quantisation is not None and expected.ndim == 2:
                expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quantisation), quantisation)
            np.testing.assert_array_equal(ours.get(name).to_float32(), expected)
            ours.release(name)
        for key, value in ours.config.items():
            assert golden.config[key] == value or key == "rope_scaling", key
        assert ours.gguf_metadata is not None
        assert ours.gguf_metadata["general.architecture"] == "llama"


def test_smollm3_is_llama_by_another_name(tmp_path: Path, golden: Checkpoint) -> None:
    keys = {key.replace("llama__", "smollm3__"): value for key, value in LLAMA_KEYS.items()}
    with open_checkpoint(write_gguf(tmp_path / "a.gguf", to_gguf(golden), "smollm3", **keys)) as ours:
        assert ours.config["model_type"] == "smollm3"
        for name in golden.names:
            np.testing.assert_array_equal(ours.get(name).to_float32(), golden.get(name).to_float32())


def test_row_order_of_a_bias_is_restored(tmp_path: Path) -> None:
    bias = np.arange(64, dtype=np.float32)
    tensors = {
        "token_embd.weight": np.zeros((512, 192), np.float32),
        "blk.0.attn_q.bias": np.arange(192, dtype=np.float32),
        "blk.0.attn_k.bias": permute_like_llama_cpp(bias.reshape(64, 1), 2).reshape(64),
    }
    checkpoint = open_checkpoint(llama_gguf(tmp_path / "a.gguf", tensors))
    np.testing.assert_array_equal(checkpoint.get("model.layers.0.self_attn.k_proj.bias").to_float32(), bias)
    assert checkpoint.config["attention_bias"] is True
    assert checkpoint.config["mlp_bias"] is False


def test_config_defaults_of_a_sparse_gguf(tmp_path: Path) -> None:
    absent: dict[str, Any] = dict.fromkeys(LLAMA_KEYS.keys() & {
        "llama__attention__head_count_kv", "llama__attention__key_length", "llama__attention__value_length",
        "llama__rope__freq_base", "llama__rope__dimension_count", "llama__vocab_size", "tokenizer__ggml__bos_token_id",
    })  # fmt: skip
    tensors = {"token_embd.weight": np.zeros((500, 192), np.float32), "output.weight": np.zeros((500, 192), np.float32)}
    config = open_checkpoint(llama_gguf(tmp_path / "a.gguf", tensors, **absent)).config
    assert config["num_key_value_heads"] == 6
    assert config["head_dim"] == 32
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    assert config["vocab_size"] == 500
    assert config["tie_word_embeddings"] is False
    assert config["rms_norm_eps"] == 1e-5
    assert "bos_token_id" not in config


def test_gguf_rope_scaling_and_end_tokens(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "llama__rope__scaling__type": "yarn",
        "llama__rope__scaling__factor": 4.0,
        "llama__rope__scaling__original_context_length": 2048,
        "tokenizer__ggml__eot_token_id": 2,
        "tokenizer__ggml__eom_token_id": 7,
        "llama__expert_count": 0,
    }
    config = open_checkpoint(llama_gguf(tmp_path / "a.gguf", **changes)).config
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert config["eos_token_id"] == [2, 7]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"llama__block_count": None}, ModelFileError, "'llama.block_count' is missing"),
        ({"llama__embedding_length": 0}, ModelFileError, "'llama.embedding_length' is 0; expected a whole number"),
        ({"llama__embedding_length": "x"}, ModelFileError, "'llama.embedding_length' is 'x'"),
        ({"llama__feed_forward_length": [1, 2, 3]}, ModelFileError, r"'llama.feed_forward_length' is array\("),
        ({"llama__attention__head_count": 7, "llama__attention__key_length": None}, ModelFileError, "not a multiple"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, ModelFileError, "is -1.0; expected a positive number"),
        ({"llama__rope__freq_base": float("nan")}, ModelFileError, "freq_base' is nan"),
        ({"llama__attention__value_length": 16}, UnsupportedError, "value_length is 16; .* the head dimension, 32"),
        ({"llama__rope__dimension_count": 16}, UnsupportedError, "dimension_count is 16"),
        ({"llama__rope__scaling__type": "longrope"}, UnsupportedError, "is 'longrope'; Freehold implements none"),
        ({"llama__rope__scaling__type": "linear"}, ModelFileError, "'llama.rope.scaling.factor' is missing"),
        ({"llama__rope__scaling__attn_factor": 0.5}, UnsupportedError, "attn_factor' is 0.5; Freehold implements 1.0"),
        ({"llama__expert_count": 8}, UnsupportedError, "'llama.expert_count' is 8; Freehold implements 0"),
        ({"llama__logit_scale": 2.0}, UnsupportedError, "'llama.logit_scale' is not implemented"),
        ({"tokenizer__ggml__bos_token_id": -1.0}, ModelFileError, "'tokenizer.ggml.bos_token_id' is -1.0"),
        ({"tokenizer__chat_template": 5}, ModelFileError, "tokenizer.chat_template is not a string"),
        ({"split__count": 3}, ModelFileError, "split.count is 3, so this is one part of several"),
        ({"general__type": "adapter"}, UnsupportedError, "a GGUF of type 'adapter'"),
    ],
)  # fmt: skip
def test_refuses_gguf_keys(tmp_path: Path, changes: dict[str, Any], error: type[FreeholdError], message: str) -> None:
    path = llama_gguf(tmp_path / "a.gguf", **changes)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("blk.3.attn_q.weight", ModelFileError, "belongs to layer 3, but llama.block_count is 3"),
        ("blk.01.attn_q.weight", UnsupportedError, "'blk.01.attn_q.weight' is not part of the llama architecture"),
        ("blk.0.ffn_gate_exps.weight", UnsupportedError, "not part of"),
        ("attn_q.weight", UnsupportedError, "not part of"),
        ("blk.0.output.weight", UnsupportedError, "not part of"),
        ("output.scale", UnsupportedError, "not part of"),
    ],
)
def test_refuses_gguf_tensors(tmp_path: Path, name: str, error: type[FreeholdError], message: str) -> None:
    tensors = {"token_embd.weight": np.zeros((512, 192), np.float32), name: np.zeros(4, np.float32)}
    with pytest.raises(error, match=message):
        open_checkpoint(llama_gguf(tmp_path / "a.gguf", tensors))


def test_refuses_a_q_projection_of_the_wrong_size(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": np.zeros((512, 192), np.float32),
        "blk.0.attn_q.weight": np.zeros((96, 192), np.float32),
    }
    checkpoint = open_checkpoint(llama_gguf(tmp_path / "a.gguf", tensors))
    with pytest.raises(ModelFileError, match=r"a\.gguf: .*q_proj.weight' has 96 rows; expected 6 heads .* here 32"):
        checkpoint.get("model.layers.0.self_attn.q_proj.weight")


def test_names_the_architecture_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"architecture 'mamba' is not .* Implemented: gpt-oss, llama"):
        open_checkpoint(llama_gguf(tmp_path / "a.gguf", architecture="mamba"))


def test_a_gguf_without_an_embedding_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tensor 'token_embd.weight'"):
        open_checkpoint(llama_gguf(tmp_path / "a.gguf", {"output_norm.weight": np.zeros(4, np.float32)}))


def test_unknown_tensors_are_not_found(tmp_path: Path, golden: Checkpoint) -> None:
    for checkpoint in (golden, open_checkpoint(llama_gguf(tmp_path / "a.gguf"))):
        for method in (checkpoint.get, checkpoint.release):
            with pytest.raises(NotFoundError, match="has no tensor 'absent'"):
                method("absent")


def test_a_directory_with_one_gguf(tmp_path: Path) -> None:
    llama_gguf(tmp_path / "one.gguf", tokenizer__chat_template="{{ messages }}")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.path) == ("gguf", tmp_path / "one.gguf")
    assert checkpoint.chat_template == "{{ messages }}"
    shutil.copy(tmp_path / "one.gguf", tmp_path / "two.gguf")
    with pytest.raises(NotFoundError, match=r"holds 2 GGUF files; name one of them: one.gguf, two.gguf"):
        open_checkpoint(tmp_path)


def test_a_gguf_of_any_name(tmp_path: Path) -> None:
    assert open_checkpoint(llama_gguf(tmp_path / "sha256-0123")).kind == "gguf"


def test_text_files_beside_the_weights(tiny: Path) -> None:
    (tiny / "generation_config.json").write_text('{"temperature": 0.6}')
    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.generation_config == {"temperature": 0.6}
    assert checkpoint.tokenizer_json == tiny / "tokenizer.json"
    assert checkpoint.chat_template == "old"
    (tiny / "chat_template.jinja").write_text("nouveau é", encoding="utf-8")
    assert open_checkpoint(tiny).chat_template == "nouveau é"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("null", None),
        ('"x"', "x"),
        ('[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]', "d"),
        ('[{"name": "tool_use", "template": "t"}]', None),
        ("[]", None),
    ],
)
def test_chat_template_in_tokenizer_config(tiny: Path, value: str, expected: str | None) -> None:
    (tiny / "tokenizer_config.json").write_text(f'{{"chat_template": {value}}}')
    assert open_checkpoint(tiny).chat_template == expected


@pytest.mark.parametrize(
    "value", ["5", '{"default": "x"}', '["x"]', '[{"name": "default"}]', '[{"name": 1, "template": "x"}]']
)
def test_refuses_a_malformed_chat_template(tiny: Path, value: str) -> None:
    (tiny / "tokenizer_config.json").write_text(f'{{"chat_template": {value}}}')
    with pytest.raises(ModelFileError, match="chat_template is neither a string nor a list"):
        open_checkpoint(tiny)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a": Infinity}', "Infinity is not"),
    ],
)
def test_refuses_malformed_json(tiny: Path, name: str, text: str, message: str) -> None:
    (tiny / name).write_text(text)
    with pytest.raises(ModelFileError, match=message) as caught:
        open_checkpoint(tiny)
    assert str(tiny / name) in str(caught.value)


def test_refuses_an_oversized_config_and_a_binary_template(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match="is not UTF-8"):
        open_checkpoint(tiny)
    with (tiny / "config.json").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ModelFileError, match="larger than 4,194,304 bytes"):
        open_checkpoint(tiny)


def test_says_what_is_missing(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(NotFoundError, match=r"does not exist; expected a model directory or a .gguf file"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_checkpoint("null\0byte")
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_checkpoint("x" * 5000)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NotFoundError, match=r"holds no model; expected config.json and"):
        open_checkpoint(empty)
    (tiny / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"holds safetensors but no config.json"):
        open_checkpoint(tiny)
    with pytest.raises(NotFoundError, match="name its directory instead"):
        open_checkpoint(tiny / "model.safetensors")
    (tiny / "model.safetensors").rename(tiny / "weights.old")
    (tiny / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"holds a config.json but no weights"):
        open_checkpoint(tiny)
    (tiny / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UnsupportedError, match="weights as pickles, which can run code"):
        open_checkpoint(tiny)
    with pytest.raises(UnsupportedError, match="is a pickle, which can run code"):
        open_checkpoint(tiny / "pytorch_model.bin")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFileError, match="is empty; the download or copy did not finish"):
        open_checkpoint(tmp_path / "empty.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_does_not_wait_for_pipes(tmp_path: Path, tiny: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        open_checkpoint(tmp_path / "pipe.gguf")
    (tiny / "config.json").unlink()
    os.mkfifo(tiny / "config.json")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        open_checkpoint(tiny)


def test_an_index_without_its_shards(tmp_path: Path, tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors.index.json").write_text('{"weight_map": {"t": "model-1-of-2.safetensors"}}')
    with pytest.raises(NotFoundError, match="1 of the 1 shards its index names are missing: 'model-1-of-2"):
        open_checkpoint(tiny)


def test_formats_of_the_golden_checkpoint(golden: Checkpoint) -> None:
    assert {golden.get(name).format for name in golden.names} == {FORMATS["BF16"]}
