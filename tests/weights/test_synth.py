"""Checkpoints with random weights: the published shapes, one set of numbers in both containers, all or nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from freehold.text.tokenizer import load_tokenizer
from freehold.weights import open_checkpoint
from freehold.weights.synth import SHAPES, containers, plan_files, write_checkpoint
from freehold.weights.synth.numbers import Bits
from freehold.weights.synth.tensors import Stored
from gguf_files import permute_like_llama_cpp
from synth_files import read_gguf, read_safetensors
from tiny_shapes import tiny

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FAMILIES = ("smollm2", "gpt-oss-20b")


def tensors_of(files: Any) -> list[Stored]:
    return [part for file in files for part in file.parts if isinstance(part, Stored)]


def decode_pairs(blocks: npt.NDArray[Any], scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """MXFP4 as Hugging Face stores it: numbers 2b and 2b + 1 in byte b."""
    pairs = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], axis=-1).reshape(*scales.shape, 32)
    return np.asarray(np.ldexp(pairs, scales.astype(int)[..., None] - 127)).reshape(*scales.shape[:-1], -1)


@pytest.mark.parametrize(
    ("name", "n_tensors", "n_bytes"),
    [("smollm2", 272, 2 * 134_515_008), ("gpt-oss-20b", 459, 13_761_264_768), ("gpt-oss-120b", 687, 65_248_815_744)],
)
def test_the_published_sizes(name: str, n_tensors: int, n_bytes: int) -> None:
    stored = tensors_of(plan_files(SHAPES[name], "safetensors"))
    assert (len(stored), sum(tensor.n_bytes for tensor in stored)) == (n_tensors, n_bytes)
    assert len({tensor.name for tensor in stored}) == n_tensors


def test_the_published_shapes_of_a_layer() -> None:
    found = {t.name: (t.dtype, t.shape) for t in tensors_of(plan_files(SHAPES["gpt-oss-120b"], "safetensors"))}
    experts = "model.layers.35.mlp.experts."
    assert found["lm_head.weight"] == ("BF16", (201088, 2880))
    assert found["model.layers.0.self_attn.q_proj.weight"] == ("BF16", (4096, 2880))
    assert found[f"{experts}gate_up_proj_blocks"] == ("U8", (128, 5760, 90, 16))
    assert found[f"{experts}gate_up_proj_scales"] == ("U8", (128, 5760, 90))
    assert found[f"{experts}down_proj_blocks"] == ("U8", (128, 2880, 90, 16))
    assert found[f"{experts}down_proj_bias"] == ("BF16", (128, 2880))


def test_the_usual_gguf() -> None:
    (file,) = plan_files(SHAPES["gpt-oss-20b"], "gguf")
    assert 12.09e9 < file.n_bytes < 12.11e9
    found = {t.name: (t.dtype, t.shape) for t in tensors_of([file])}
    assert found["blk.23.ffn_up_exps.weight"] == ("MXFP4", (32, 2880, 2880))
    assert found["blk.0.attn_k.weight"] == ("Q8_0", (512, 2880))
    assert found["blk.0.ffn_gate_inp.weight"] == ("F32", (32, 2880))


def test_both_containers_hold_the_same_gpt_oss(tmp_path: Path) -> None:
    published = tiny("gpt-oss-20b")
    directory = write_checkpoint(published, tmp_path / "a")
    found = read_safetensors(directory)
    other = read_gguf(write_checkpoint(published, tmp_path / "b", container="gguf"))
    renamed = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.router": "ffn_gate_inp",
    }  # fmt: skip
    expected = {
        "token_embd.weight": found["model.embed_tokens.weight"],
        "output.weight": found["lm_head.weight"],
        "output_norm.weight": found["model.norm.weight"],
    }
    for layer in range(2):
        at, to = f"model.layers.{layer}.", f"blk.{layer}."
        for name in found:
            module, _, kind = name.removeprefix(at).rpartition(".")
            if module in renamed and name.startswith(at):
                expected[f"{to}{renamed[module]}.{kind}"] = found[name]
        expected[f"{to}attn_sinks.weight"] = found[f"{at}self_attn.sinks"]
        at += "mlp.experts."
        gate_up = decode_pairs(found[f"{at}gate_up_proj_blocks"], found[f"{at}gate_up_proj_scales"])
        down = decode_pairs(found[f"{at}down_proj_blocks"], found[f"{at}down_proj_scales"])
        expected |= {f"{to}ffn_gate_exps.weight": gate_up[:, ::2], f"{to}ffn_up_exps.weight": gate_up[:, 1::2]}
        expected |= {f"{to}ffn_down_exps.weight": down, f"{to}ffn_down_exps.bias": found[f"{at}down_proj_bias"]}
        bias = found[f"{at}gate_up_proj_bias"]
        expected |= {f"{to}ffn_gate_exps.bias": bias[:, ::2], f"{to}ffn_up_exps.bias": bias[:, 1::2]}
    assert other.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(other[name], numbers, err_msg=name)


def test_both_containers_hold_the_same_llama(tmp_path: Path) -> None:
    published = tiny("smollm2")
    found = read_safetensors(write_checkpoint(published, tmp_path / "a"))
    other = read_gguf(write_checkpoint(published, tmp_path / "b", container="gguf"))
    for kind, n_heads in (("q", 4), ("k", 2)):
        rows = found[f"model.layers.1.self_attn.{kind}_proj.weight"]
        np.testing.assert_array_equal(other[f"blk.1.attn_{kind}.weight"], permute_like_llama_cpp(rows, n_heads))
    for ours, theirs in (
        ("self_attn.v_proj", "attn_v"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
    ):
        np.testing.assert_array_equal(other[f"blk.0.{theirs}.weight"], found[f"model.layers.0.{ours}.weight"])
    np.testing.assert_array_equal(other["token_embd.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_freehold_reads_both(tmp_path: Path, family: str) -> None:
    published = tiny(family)
    paths = [write_checkpoint(published, tmp_path / kind, container=kind) for kind in ("safetensors", "gguf")]
    with open_checkpoint(paths[0]) as first, open_checkpoint(paths[1]) as second:
        assert set(first.names) == set(second.names)
        for name in first.names:
            np.testing.assert_array_equal(first.get(name).to_float32(), second.get(name).to_float32(), err_msg=name)
        same = ("hidden_size", "num_hidden_layers", "vocab_size", "rope_theta", "rms_norm_eps", "num_key_value_heads")
        assert all(first.config[key] == second.config[key] == published.config[key] for key in same)
        tokenizer = load_tokenizer(None, second.gguf_metadata, second.config)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (300, 301, 320)
    assert tokenizer.decode(tokenizer.encode("Grüße,  \n☃")) == "Grüße,  \n☃"


def test_no_quantiser_can_change_a_number(tmp_path: Path) -> None:
    """llama.cpp's own rule for Q8_0 gives the file's bytes back."""
    path = write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a", container="gguf")
    quantised = [t for t in gguf.GGUFReader(path).tensors if t.tensor_type.name == "Q8_0"]
    assert len(quantised) == 2 + 2 * 4
    for tensor in quantised:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(gguf.quants.quantize(numbers, tensor.tensor_type), tensor.data)


def test_a_seed_means_the_same_numbers_for_ever(tmp_path: Path) -> None:
    found = read_safetensors(write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a", seed=5))
    digests = {
        name: hashlib.sha256(found[f"model.layers.0.{name}"].tobytes()).hexdigest()[:16]
        for name in ("self_attn.q_proj.weight", "self_attn.sinks", "mlp.experts.gate_up_proj_blocks")
    }
    assert digests == {
        "self_attn.q_proj.weight": "7fb61a586430038f",
        "self_attn.sinks": "d9704785ca96fe72",
        "mlp.experts.gate_up_proj_blocks": "7fe29f5fdf04ed64",
    }


def test_layers_and_other_tensors_change_nothing(tmp_path: Path) -> None:
    whole = read_safetensors(write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a"))
    one = write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "b", layers=1)
    for name, numbers in read_safetensors(one).items():
        np.testing.assert_array_equal(numbers, whole[name])
    config = json.loads((one / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (1, ["sliding_attention"])
    seeded = read_safetensors(write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "c", seed=1))
    assert all(not np.array_equal(seeded[name], numbers) for name, numbers in whole.items())


def test_pieces_join_to_one_tensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small pieces, of several sizes, with interleaved and rotated rows."""
    monkeypatch.setattr("freehold.weights.synth.tensors.PIECE_NUMBERS", 640)
    test_both_containers_hold_the_same_gpt_oss(tmp_path / "gpt-oss")
    test_both_containers_hold_the_same_llama(tmp_path / "llama")


def test_the_scale_of_the_numbers() -> None:
    """At real widths: products of order 1, routing close to uniform, no ties."""
    published = SHAPES["gpt-oss-20b"].cut(1)
    config = {**published.config, "num_local_experts": 32, "vocab_size": 64}
    named = {
        t.name.removeprefix("model.layers.0."): t
        for t in tensors_of(plan_files(replace(published, config=config), "safetensors"))
    }

    def numbers(name: str) -> npt.NDArray[Any]:
        data = np.concatenate([rows.reshape(-1) for rows in named[name].pieces()])
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(named[name].shape)

    inputs = np.random.default_rng(0).standard_normal((2000, 2880), np.float32)
    for name in ("self_attn.q_proj.weight", "self_attn.v_proj.weight"):
        assert 0.7 < (inputs[:50] @ numbers(name).T).std() < 1.4
    router = inputs @ numbers("mlp.router.weight").T + numbers("mlp.router.bias")
    chosen = np.bincount(np.argsort(router, axis=1)[:, -4:].reshape(-1), minlength=32)
    assert chosen.min() > 0.75 * 250
    assert chosen.max() < 1.25 * 250
    assert all(len(set(row)) == 32 for row in router.tolist())
    assert 0.7 < numbers("self_attn.sinks").std() < 1.3
    assert np.abs(numbers("input_layernorm.weight") - 1).max() < 0.2


def test_experts_are_four_bit_floats_of_the_right_size(tmp_path: Path) -> None:
    published = tiny("gpt-oss-20b", intermediate_size=512, num_local_experts=2)
    found = read_safetensors(write_checkpoint(published, tmp_path / "a", layers=1))
    at = "model.layers.0.mlp.experts.down_proj_"
    assert len(np.unique(found[f"{at}scales"])) == 3
    assert len(np.unique(found[f"{at}blocks"])) == 256
    assert 0.7 < decode_pairs(found[f"{at}blocks"], found[f"{at}scales"]).std() * 512**0.5 < 1.42


def test_large_models_are_sharded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(containers, "SHARD_BYTES", 60_000)
    published = tiny("gpt-oss-20b")
    directory = write_checkpoint(published, tmp_path / "a")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert all((directory / shard).stat().st_size < 70_000 for shard in shards)
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.n_bytes == index["metadata"]["total_size"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*shards, "config.json", "generation_config.json", "model.safetensors.index.json"]
    )


def test_bits_depend_on_name_purpose_and_seed_only() -> None:
    def take(seed: int, name: str, purpose: str, *sizes: int) -> bytes:
        bits = Bits(seed, name)
        bits.take("something else", 100)
        return b"".join(bits.take(purpose, size).tobytes() for size in sizes)

    whole = take(0, "a", "codes", 64)
    assert take(0, "a", "codes", 16, 40, 8) == whole
    assert len({whole, take(1, "a", "codes", 64), take(0, "b", "codes", 64), take(0, "a", "scales", 64)}) == 4


def test_pieces_are_small() -> None:
    """What is in memory at once does not grow with the model."""
    for container in ("safetensors", "gguf"):
        for tensor in tensors_of(plan_files(SHAPES["gpt-oss-120b"], container))[:25]:
            assert next(tensor.pieces()).nbytes <= 4 << 20
