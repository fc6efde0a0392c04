"""GGUF's words for the gpt-oss architecture, translated to Hugging Face's.

Owns its tables of keys and tensor names. The numbers are those of the publisher: rows of q and k keep their order, and
the experts' gate and up are apart already. Knows nothing of how the file is laid out.

Source: the tables of PyPI `gguf` (constants.py, MODEL_ARCH.GPT_OSS) and what llama.cpp's converter writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from freehold.formats import QTensor
from freehold.weights.gguf_words import COMMON_KEYS, COMMON_NEUTRAL, Words, translate_names
from freehold.weights.gpt_oss_config import constants

_MODULE_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_MODULE_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_KEYS = COMMON_KEYS | {
    "expert_count", "expert_used_count", "expert_feed_forward_length", "attention.sliding_window",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **COMMON_NEUTRAL,
    "attention.sliding_window_pattern": (2,),  # every second layer is full, which files leave unsaid
    "expert_gating_func": (3,),  # softmax over the chosen experts
    "expert_shared_count": (0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
}


def tensor_names(names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order; errors as in `translate_names`."""
    found = translate_names(names, Words(metadata, "gpt-oss"), _MODULE_NAMES, _LAYER_MODULE_NAMES)
    return {ours.replace("self_attn.sinks.weight", "self_attn.sinks"): theirs for ours, theirs in found.items()}


def config_from_metadata(metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not implemented.
    """
    words = Words(metadata, "gpt-oss")
    words.refuse_unknown(_KEYS, _NEUTRAL)
    config = words.common_config(names, vocab_rows)
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["rope_type"] == "yarn":
        scaling["beta_fast"] = words.number("rope.scaling.yarn_beta_fast", 32.0)
        scaling["beta_slow"] = words.number("rope.scaling.yarn_beta_slow", 1.0)
        scaling["truncate"] = False  # as published; GGUF has no key for it
    return {
        **constants(config["num_hidden_layers"]),
        **config,
        "intermediate_size": words.count("expert_feed_forward_length", config["intermediate_size"]),
        "num_local_experts": words.count("expert_count"),
        "num_experts_per_tok": words.count("expert_used_count"),
        "sliding_window": words.count("attention.sliding_window"),
    }


def restore(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
    """The tensor as it is: the converter changed nothing."""
    return tensor
