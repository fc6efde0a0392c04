"""The golden DeepSeek and GLM checkpoints as GGUF, as llama.cpp's converter writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gguf_files import write_gguf
from qwen_files import GGUF_NAMES as QWEN_NAMES
from qwen_files import golden_config, stacked_numbers

ARCHITECTURES = {"deepseek_v2_lite": "deepseek2", "deepseek_v3": "deepseek2", "glm4_moe": "glm4moe"}
"""The golden checkpoint to GGUF's architecture."""

_MOE_NAMES = {
    **QWEN_NAMES,
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias", "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip
GGUF_NAMES = {
    "deepseek2": {
        **_MOE_NAMES,
        "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": "attn_kv_b", "self_attn.k_b_proj": "attn_k_b", "self_attn.v_b_proj": "attn_v_b",
    },
    "glm4moe": {**_MOE_NAMES, "post_attention_layernorm": "post_attention_norm"},
}  # fmt: skip


def gguf_name(name: str, family: str) -> str:
    """GGUF's name of a tensor of the golden checkpoint, its experts stacked."""
    names = GGUF_NAMES[ARCHITECTURES[family]]
    for theirs in sorted(names, key=len, reverse=True):
        name = name.replace(theirs, names[theirs])
    return name


def published_numbers(family: str, split: bool = False) -> dict[str, np.ndarray]:
    """The golden numbers under Hugging Face's names, experts stacked. split: kv_b_proj as newer files have it."""
    numbers = stacked_numbers(family)
    if not split:
        return numbers
    config = golden_config(family)
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    parts: dict[str, np.ndarray] = {}
    for name, values in numbers.items():
        if "kv_b_proj" not in name:
            parts[name] = values
            continue
        by_head = values.reshape(heads, -1, config["kv_lora_rank"])
        parts[name.replace("kv_b_proj", "k_b_proj")] = np.ascontiguousarray(by_head[:, :nope].swapaxes(1, 2))
        parts[name.replace("kv_b_proj", "v_b_proj")] = np.ascontiguousarray(by_head[:, nope:])
    return parts


def gguf_keys(family: str, split: bool = False) -> dict[str, Any]:
    """Metadata for `write_gguf`, without their architecture. split: those of newer files, which describe the latent."""
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
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_gating_func": 1 if family == "deepseek_v2_lite" else 2,
        "expert_group_count": config.get("n_group", 1),
        "expert_group_used_count": config.get("topk_group", 1),
    }
    if config["norm_topk_prob"]:
        keys["expert_weights_norm"] = True
    if family == "glm4_moe":
        return keys | {
            "attention__key_length": config["head_dim"],
            "attention__value_length": config["head_dim"],
            "rope__dimension_count": int(config["head_dim"] * config["partial_rotary_factor"]),
        }
    return keys | _latent_keys(config, split)


def _latent_keys(config: dict[str, Any], split: bool) -> dict[str, Any]:
    scaling, latent, rotated = config["rope_scaling"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    keys: dict[str, Any] = {
        "attention__kv_lora_rank": latent,
        "rope__dimension_count": rotated,
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": scaling["factor"],
        "rope__scaling__original_context_length": scaling["original_max_position_embeddings"],
        "rope__scaling__yarn_log_multiplier": 0.1 * scaling["mscale_all_dim"],
    }
    if config["q_lora_rank"] is not None:
        keys["attention__q_lora_rank"] = config["q_lora_rank"]
    widths = {"key_length": config["qk_nope_head_dim"] + rotated, "value_length": config["v_head_dim"]}
    if not split:
        return keys | {f"attention__{key}": width for key, width in widths.items()}
    return keys | {
        **{f"attention__{key}_mla": width for key, width in widths.items()},
        "attention__head_count_kv": 1,
        "attention__key_length": latent + rotated,
        "attention__value_length": latent,
        "rope__scaling__yarn_beta_fast": scaling["beta_fast"],
        "rope__scaling__yarn_beta_slow": scaling["beta_slow"],
    }


def save_gguf(
    path: Path,
    family: str,
    quantisation: gguf.GGMLQuantizationType | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    split: bool = False,
    without: str | None = None,
    **changes: Any,
) -> Path:
    """Matrices quantised, vectors in float32. tensors: under GGUF's names, beside the golden ones.

    split: as newer converters write. without: a regex of GGUF names to leave out. changes: keys without their
    architecture; None removes one.
    """
    written: dict[str, Any] = {}
    for name, numbers in published_numbers(family, split).items():
        name = gguf_name(name, family)
        if without is None or not re.search(without, name):
            written[name] = numbers if quantisation is None or numbers.ndim == 1 else (numbers, quantisation)
    architecture = ARCHITECTURES[family]
    keys = {f"{architecture}__{key}": value for key, value in {**gguf_keys(family, split), **changes}.items()}
    present = {key: value for key, value in keys.items() if value is not None}
    return write_gguf(path, written | (tensors or {}), architecture, **present)
