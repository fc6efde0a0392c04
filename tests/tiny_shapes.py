"""The models that `synth` writes, at a size for tests: every tensor and every rule of theirs, small numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.weights.synth import SHAPES
from freehold.weights.synth.published import Published

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 8192,
}
_SMALL_IF_THERE: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "head_dim": 32,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_local_experts": 6,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}


def tiny(name: str, **changes: Any) -> Published:
    """The published model `name`, cut to 2 layers of width 64."""
    ids = {"bos_token_id": 300, "eos_token_id": [301], "pad_token_id": 301}
    config: dict[str, Any] = {
        **SHAPES[name].cut(2).config,
        **_SMALL,
        **{key: 301 if key == "eos_token_id" else value for key, value in ids.items()},
    }
    config |= {key: value for key, value in _SMALL_IF_THERE.items() if config.get(key) is not None}
    if "kv_lora_rank" in config:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if config.get("n_group", 1) > 1:
        config |= {"n_group": 4, "topk_group": 2}
    if "num_local_experts" in config:
        config["num_experts_per_tok"] = 4
    controls = {300: "<|startoftext|>", 301: "<|return|>"}
    config |= changes
    return replace(SHAPES[name], config=config, generation_config=ids, control_tokens=controls)
