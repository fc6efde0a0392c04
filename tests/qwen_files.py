"""The golden Qwen checkpoints as GGUF, as llama.cpp's converter writes them, and their configs changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from freehold.weights import open_checkpoint
from gguf_files import write_gguf
from golden_models import GOLDEN

ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""Hugging Face's model_type to GGUF's architecture."""

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate.": "ffn_gate_inp.",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}  # fmt: skip


def golden_config(family: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / family / "config.json").read_text())
    return config


def with_config(directory: Path, family: str, **change: Any) -> Path:
    """The golden checkpoint with keys of its config replaced."""
    shutil.copy(GOLDEN / family / "model.safetensors", directory)
    (directory / "config.json").write_text(json.dumps({**golden_config(family), **change}))
    return directory


def stacked_numbers(family: str) -> dict[str, np.ndarray]:
    """The golden checkpoint's numbers under Hugging Face's names, a layer's experts as one tensor per projection."""
    numbers: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    with open_checkpoint(GOLDEN / family) as checkpoint:
        for name in checkpoint.names:
            values = checkpoint.get(name).to_float32()
            if match := re.fullmatch(r"(.+\.experts)\.(\d+)(\..+)", name):
                experts.setdefault(match[1] + match[3], {})[int(match[2])] = values
            else:
                numbers[name] = values
    return numbers | {name: np.stack([found[e] for e in sorted(found)]) for name, found in experts.items()}


def gguf_keys(family: str) -> dict[str, Any]:
    """Metadata for `write_gguf`, without what a converter derives."""
    config = golden_config(family)
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention__head_count": config["num_attention_heads"],
        "attention__head_count_kv": config["num_key_value_heads"],
        "attention__layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope__freq_base": config["rope_theta"],
    }
    if family != "qwen2":
        keys |= {"attention__key_length": config["head_dim"], "attention__value_length": config["head_dim"]}
    if family == "qwen3_moe":
        keys |= {
            "expert_count": config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    return {f"{ARCHITECTURES[family]}__{key}": value for key, value in keys.items()}


def save_gguf(
    path: Path,
    family: str,
    quantisation: gguf.GGMLQuantizationType | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """Matrices quantised, vectors in float32. tensors: under GGUF's names, beside or in place of the golden ones.

    changes: keys without their architecture; None removes one.
    """
    written: dict[str, Any] = {}
    for name, numbers in stacked_numbers(family).items():
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        written[name] = numbers if quantisation is None or numbers.ndim == 1 else (numbers, quantisation)
    architecture = ARCHITECTURES[family]
    keys = gguf_keys(family) | {f"{architecture}__{key}": value for key, value in changes.items()}
    present = {key: value for key, value in keys.items() if value is not None}
    return write_gguf(path, written | (tensors or {}), architecture, **present)
