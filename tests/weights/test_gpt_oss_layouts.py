"""gpt-oss in its three layouts, written from the same numbers: the same tensors and the same config come out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt_oss_files as files
from freehold.formats import FORMATS
from freehold.weights import Checkpoint, open_checkpoint

EXPECTED = files.expected_tensors()
GATE, UP, DOWN = (f"model.layers.1.mlp.experts.{x}_proj.weight" for x in ("gate", "up", "down"))
QUIET_KEYS = {  # of the golden config: those without meaning for the maths, which the other layouts do not have
    "attention_dropout", "chunk_size_feed_forward", "initializer_range", "is_encoder_decoder", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "router_aux_loss_coef", "torch_dtype", "use_cache",
    "quantization_config", "swiglu_alpha",
}  # fmt: skip


def published(path: Path) -> Path:
    shutil.copytree(files.GOLDEN, path / "model")
    return path / "model"


def sharded(path: Path) -> Path:
    return files.save_sharded(path, files.read_golden(), files.golden_config(), 3)


def original(path: Path) -> Path:
    return files.save_directory(path / "original", files.original_tensors(), files.ORIGINAL_CONFIG)


def original_series(path: Path) -> Path:
    """As the 120b: shards numbered, without an index."""
    directory = files.save_sharded(path / "original", files.original_tensors(), files.ORIGINAL_CONFIG, 4)
    (directory / "model.safetensors.index.json").unlink()
    return directory


def one_gguf(path: Path) -> Path:
    return files.save_gguf(path / "model.gguf")


EVERY_LAYOUT = pytest.mark.parametrize("save", [published, sharded, original, original_series, one_gguf])


@EVERY_LAYOUT
def test_every_layout_gives_the_same_tensors(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    with open_checkpoint(save(tmp_path)) as checkpoint:
        assert set(checkpoint.names) == EXPECTED.keys()
        assert len(checkpoint.names) == len(EXPECTED)
        for name, expected in EXPECTED.items():
            tensor = checkpoint.get(name)
            assert tensor.shape == expected.shape
            np.testing.assert_array_equal(tensor.to_float32(), expected, err_msg=name)
            assert (tensor.format is FORMATS["MXFP4"]) == (".experts." in name and name.endswith("weight"))
            checkpoint.release(name)
            np.testing.assert_array_equal(checkpoint.get(name).to_float32(), expected, err_msg=name)
        assert checkpoint.n_bytes == sum(checkpoint.get(name).n_bytes for name in checkpoint.names)


@EVERY_LAYOUT
def test_every_layout_gives_the_same_config(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    config = open_checkpoint(save(tmp_path)).config
    for key, value in files.golden_config().items():
        if key not in QUIET_KEYS:
            assert config[key] == value, key
    assert config.get("swiglu_limit") == 7.0


def test_experts_are_views_that_share_the_file(tmp_path: Path) -> None:
    for save in (published, original):
        checkpoint = open_checkpoint(save(tmp_path))
        gate, up, down = (checkpoint.get(name) for name in (GATE, UP, DOWN))
        for tensor in (gate, up, down):
            assert tensor.scales is not None
            for array in (tensor.data, tensor.scales):
                assert not array.flags.owndata
                assert not array.flags.writeable
                assert array.strides[-1] == 1
        assert gate.data.strides == up.data.strides == (2 * 96, 1)
        assert gate.data.__array_interface__["data"][0] + 96 == up.data.__array_interface__["data"][0]
        assert gate.expert(3).data.base is not None
        np.testing.assert_array_equal(gate.expert(3).to_float32(), EXPECTED[GATE][3])


def test_query_key_and_value_rows_are_views(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(original(tmp_path))
    q, k, v = (checkpoint.get(f"model.layers.0.self_attn.{x}_proj.weight") for x in "qkv")
    assert not q.data.flags.owndata
    address = [tensor.data.__array_interface__["data"][0] for tensor in (q, k, v)]
    assert [address[1] - address[0], address[2] - address[1]] == [q.n_bytes, k.n_bytes]


def test_published_layout_wins_over_original_beside_it(tmp_path: Path) -> None:
    root = published(tmp_path)
    inner = original(root)
    assert open_checkpoint(root).path == root
    assert open_checkpoint(inner).path == inner
    (root / "model.safetensors").unlink()  # only original/ was downloaded
    assert open_checkpoint(root).path == inner


def test_original_takes_texts_from_beside_it_or_above(tmp_path: Path) -> None:
    directory = original(tmp_path)
    assert open_checkpoint(directory).tokenizer_json is None
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5]}')
    (tmp_path / "chat_template.jinja").write_text("above")
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tokenizer_json == tmp_path / "tokenizer.json"
    assert checkpoint.generation_config == {"eos_token_id": [5]}
    assert checkpoint.chat_template == "above"
    (directory / "tokenizer.json").write_text("{}")
    assert open_checkpoint(directory).tokenizer_json == directory / "tokenizer.json"


def test_published_layout_takes_no_texts_from_above(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert open_checkpoint(published(tmp_path)).tokenizer_json is None


def test_original_names_with_a_config_in_hugging_faces_words(tmp_path: Path) -> None:
    directory = files.save_directory(tmp_path / "mixed", files.original_tensors(), files.golden_config())
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config == files.golden_config()
    np.testing.assert_array_equal(checkpoint.get(UP).to_float32(), EXPECTED[UP])


def test_defaults_of_gguf(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rope__scaling__yarn_beta_fast": 16.0, "rope__scaling__yarn_beta_slow": 2.0}
    config = open_checkpoint(files.save_gguf(tmp_path / "a.gguf", **changes)).config
    assert config["rope_scaling"]["beta_fast"] == 16.0
    assert config["rope_scaling"]["beta_slow"] == 2.0
    bare = open_checkpoint(files.save_gguf(tmp_path / "b.gguf", rope__scaling__type=None)).config
    assert bare["rope_scaling"] is None
    same: dict[str, Any] = {
        "expert_feed_forward_length": None,
        "attention__sliding_window_pattern": 2,
        "expert_gating_func": 3,
    }
    assert open_checkpoint(files.save_gguf(tmp_path / "c.gguf", **same)).config["intermediate_size"] == 160


def test_quantization_config_may_be_left_out(tmp_path: Path) -> None:
    config = files.golden_config()
    del config["quantization_config"]
    (published(tmp_path) / "config.json").write_text(json.dumps(config))
    checkpoint: Checkpoint = open_checkpoint(tmp_path / "model")
    np.testing.assert_array_equal(checkpoint.get(DOWN).to_float32(), EXPECTED[DOWN])
