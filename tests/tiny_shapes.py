"""The models that `synth` writes, at a size for tests: every tensor and every rule of theirs, small numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.weights.synth import SHAPES
from freehold.weights.synth.published import Published


def tiny(name: str, **changes: Any) -> Published:
    """The published model `name`, cut to 2 layers of width 64."""
    ids = {"bos_token_id": 300, "eos_token_id": [301], "pad_token_id": 301}
    config: dict[str, Any] = {
        **SHAPES[name].cut(2).config,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 8192,
        **{key: 301 if key == "eos_token_id" else value for key, value in ids.items()},
    }
    if "num_local_experts" in config:
        config |= {"head_dim": 32, "num_local_experts": 6}
    controls = {300: "<|startoftext|>", 301: "<|return|>"}
    config |= changes
    return replace(SHAPES[name], config=config, generation_config=ids, control_tokens=controls)
