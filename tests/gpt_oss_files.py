"""The golden gpt-oss checkpoint in every layout: as published, as OpenAI's `original/`, as GGUF; whole or damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gguf_files import add_value

GOLDEN = Path(__file__).parent / "golden" / "gpt_oss"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def bytes(self) -> np.ndarray:
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)

    def numbers(self) -> np.ndarray:
        """A BF16 tensor in float32."""
        assert self.dtype == "BF16"
        bits = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(self.shape)


def read_golden(directory: Path = GOLDEN) -> dict[str, Stored]:
    """Every tensor of a golden checkpoint, by its published name, read without Freehold."""
    data = (directory / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__")
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), data[start + offsets[0] : start + offsets[1]])
        for name, entry in header.items()
        for offsets in [entry["data_offsets"]]
    }


def golden_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
    return config


def save_safetensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + len(tensor.data)]}
        end += len(tensor.data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))


def save_directory(directory: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> Path:
    """One safetensors file and its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    save_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def save_sharded(directory: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any], n_shards: int) -> Path:
    """The tensors dealt out to shards in turn, so that what belongs together lies apart, and an index."""
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        held = dict(list(tensors.items())[shard::n_shards])
        save_safetensors(directory / file, held)
        weight_map |= dict.fromkeys(held, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


ORIGINAL_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 4, "num_experts": 8, "experts_per_token": 4, "vocab_size": 512, "hidden_size": 192,
    "intermediate_size": 160, "swiglu_limit": 7.0, "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 2,
    "sliding_window": 16, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
}  # fmt: skip
_ORIGINAL_NAMES = {
    "model.embed_tokens.weight": "embedding.weight", "lm_head.weight": "unembedding.weight",
    "model.norm.weight": "norm.scale", "model.layers.": "block.", "input_layernorm.weight": "attn.norm.scale",
    "post_attention_layernorm.weight": "mlp.norm.scale", "self_attn.": "attn.", "o_proj": "out", "router": "gate",
    "experts.gate_up_proj_bias": "mlp1_bias", "experts.gate_up_proj_": "mlp1_weight.",
    "experts.down_proj_bias": "mlp2_bias", "experts.down_proj_": "mlp2_weight.",
}  # fmt: skip


def original_tensors() -> dict[str, Stored]:
    """The golden tensors under OpenAI's names, q, k and v joined."""
    golden = read_golden()
    result = {}
    for name, tensor in golden.items():
        if re.search("[kv]_proj", name):
            continue
        if "q_proj" in name:
            parts = [golden[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            rows = sum(part.shape[0] for part in parts)
            tensor = Stored(tensor.dtype, (rows, *tensor.shape[1:]), b"".join(part.data for part in parts))
            name = name.replace("q_proj", "qkv")
        for theirs, ours in _ORIGINAL_NAMES.items():
            name = name.replace(theirs, ours)
        result[name] = tensor
    return result


GGUF_KEYS: dict[str, Any] = {
    "block_count": 4, "context_length": 131072, "embedding_length": 192, "feed_forward_length": 160,
    "attention.head_count": 8, "attention.head_count_kv": 2, "attention.key_length": 32, "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5, "attention.sliding_window": 16, "expert_count": 8,
    "expert_used_count": 4, "expert_feed_forward_length": 160, "rope.freq_base": 150000.0, "rope.scaling.type": "yarn",
    "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
}  # fmt: skip
_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "self_attn.sinks":
    "attn_sinks.weight", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.router": "ffn_gate_inp",
}  # fmt: skip


def ggml_blocks(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MXFP4 as published, blocks [..., n, 16] and scales [..., n], to ggml's rows of bytes [..., n * 17]."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)  # in the order of the elements
    both = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], -1)
    return both.reshape(*scales.shape[:-1], -1)


def gguf_tensors() -> dict[str, np.ndarray]:
    """The golden tensors as llama.cpp's converter writes them: uint8 for MXFP4, else float32 (so that it is exact)."""
    golden = read_golden()
    result: dict[str, np.ndarray] = {}
    for name, tensor in golden.items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj_(blocks|bias)", name):
            layer, kind, part = match.groups()
            ending = "bias" if part == "bias" else "weight"
            rows = tensor.numbers() if part == "bias" else mxfp4_rows(golden, name)
            split = {"down": rows} if kind == "down" else {"gate": rows[:, 0::2], "up": rows[:, 1::2]}
            for target, values in split.items():
                result[f"blk.{layer}.ffn_{target}_exps.{ending}"] = np.ascontiguousarray(values)
        elif not name.endswith("_scales"):
            for theirs, ours in _GGUF_NAMES.items():
                name = name.replace(theirs, ours)
            result[name] = tensor.numbers()
    return result


def mxfp4_rows(golden: Mapping[str, Stored], blocks_name: str) -> np.ndarray:
    return ggml_blocks(golden[blocks_name].bytes(), golden[blocks_name.replace("blocks", "scales")].bytes())


def save_gguf(path: Path, tensors: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """changes: of keys, `__` standing for the dot, None removing one."""
    writer = gguf.GGUFWriter(path, "gpt-oss")
    for key, value in (GGUF_KEYS | {key.replace("__", "."): value for key, value in changes.items()}).items():
        if value is not None:
            add_value(writer, f"gpt-oss.{key}", value)
    for name, values in (gguf_tensors() if tensors is None else tensors).items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.MXFP4 if values.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected_tensors() -> dict[str, np.ndarray]:
    """Every tensor in float32 under the names Freehold gives it, decoded here independently."""
    golden = read_golden()
    result: dict[str, np.ndarray] = {}
    for name, tensor in golden.items():
        if name.endswith("_scales"):
            continue
        if ".experts." not in name:
            result[name] = tensor.numbers()
            continue
        base, kind = name.rsplit("_", 1)
        values = tensor.numbers() if kind == "bias" else _dequantise(tensor, golden[base + "_scales"])
        ending = "bias" if kind == "bias" else "weight"
        if base.endswith("down_proj"):
            result[f"{base}.{ending}"] = values
        else:
            for part, first in (("gate_proj", 0), ("up_proj", 1)):
                result[f"{base.replace('gate_up_proj', part)}.{ending}"] = values[:, first::2]
    return result


def _dequantise(blocks: Stored, scales: Stored) -> np.ndarray:
    codes = np.stack([blocks.bytes() & 15, blocks.bytes() >> 4], axis=-1)  # [E, rows, n, 16, 2]
    values = np.ldexp(E2M1[codes], scales.bytes().astype(np.int32)[..., None, None] - 127)
    return values.reshape(*blocks.shape[:2], -1).astype(np.float32)


def without(tensors: Mapping[str, Stored], names: Iterable[str]) -> dict[str, Stored]:
    left = set(names)
    assert left <= tensors.keys()
    return {name: tensor for name, tensor in tensors.items() if name not in left}
