"""What `synth` wrote, read without Freehold: every number of both containers, and Hugging Face's layout made GGUF's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from freehold.weights.synth.published import Published
from gguf_files import permute_like_llama_cpp

Arrays = dict[str, npt.NDArray[Any]]

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b", "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias", "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip


def read_safetensors(directory: Path) -> Arrays:
    """Every tensor as stored; bfloat16 as float32, and FP8 multiplied with its scales."""
    found: Arrays = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__")
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            raw: Any = np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint8)
            if entry["dtype"] == "BF16":
                raw = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] == "F32":
                raw = raw.view("<f4")
            elif entry["dtype"] == "F8_E4M3":
                raw = _e4m3(raw)
            found[name] = raw.reshape(entry["shape"])
    scales = {name: found.pop(name) for name in list(found) if name.endswith("_scale_inv")}
    for name, scale in scales.items():
        numbers = found[name.removesuffix("_scale_inv")]
        assert scale.shape == tuple(-(-size // 128) for size in numbers.shape)
        numbers *= np.kron(scale, np.ones((128, 128), np.float32))[: numbers.shape[0], : numbers.shape[1]]
    return found


def _e4m3(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Sign, four bits of exponent less 7, three of fraction; the models have no subnormals, and no NaN."""
    exponent, fraction = (codes >> 3 & 15).astype(int), (codes & 7).astype(np.float32)
    assert (exponent > 0).all()
    assert (codes & 0x7F < 0x7F).all()
    size = np.ldexp(1 + fraction / 8, exponent - 7).astype(np.float32)
    numbers: npt.NDArray[np.float32] = np.where(codes >> 7, -size, size)
    return numbers


def read_gguf(path: Path) -> Arrays:
    """Every tensor as numbers, read by PyPI `gguf`."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()) for t in reader.tensors
    }


def as_gguf(found: Arrays, published: Published) -> Arrays:
    """The tensors of a checkpoint under the names that llama.cpp's converter gives them, and as it changes them."""
    config, architecture = published.config, published.architecture
    experts: dict[str, dict[int, npt.NDArray[Any]]] = {}
    result: Arrays = {}
    for name, numbers in found.items():
        if match := re.fullmatch(r"(.+\.experts)\.(\d+)(\..+)", name):
            experts.setdefault(match[1] + match[3], {})[int(match[2])] = numbers
        elif match := re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.kv_b_proj\.weight", name):
            heads = numbers.reshape(config["num_attention_heads"], -1, numbers.shape[1])
            keys, values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
            result |= {
                f"blk.{match[1]}.attn_k_b.weight": keys.swapaxes(1, 2),
                f"blk.{match[1]}.attn_v_b.weight": values,
            }
        elif architecture == "llama" and (match := re.search(r"\.([qk])_proj\.weight", name)):
            n_heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
            result[_gguf_name(name, architecture)] = permute_like_llama_cpp(numbers, n_heads)
        else:
            result[_gguf_name(name, architecture)] = numbers
    for name, by_expert in experts.items():
        result[_gguf_name(name, architecture)] = np.stack([by_expert[index] for index in range(len(by_expert))])
    return result


def _gguf_name(name: str, architecture: str) -> str:
    for theirs, ours in _GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("ffn_norm", "post_attention_norm") if architecture == "glm4moe" else name
