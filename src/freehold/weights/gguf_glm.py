"""GGUF's words for the glm4moe architecture (GLM-4.5, 4.5-Air, 4.6), translated to Hugging Face's.

Owns its tables of keys and tensor names. The numbers are those of the publisher: rows of q and k keep their order,
since llama.cpp rotates this model in halves as Hugging Face does. The MTP layer that files carry behind the others is
left out. Knows nothing of how the file is laid out.

Source: the tables of PyPI `gguf` (constants.py, MODEL_ARCH.GLM4_MOE), llama.cpp's converter and its loader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from freehold.errors import ModelFileError
from freehold.formats import QTensor
from freehold.weights.gguf_words import COMMON_KEYS, COMMON_NEUTRAL, YARN_BETAS, YARN_NEUTRAL, Words, translate_names

ARCHITECTURE = "glm4moe"

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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",  # other architectures call it ffn_norm
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_BIASES = tuple(f"self_attn.{x}_proj.bias" for x in "qkv")
_KEYS = COMMON_KEYS | YARN_BETAS | {
    "leading_dense_block_count", "nextn_predict_layers", "expert_count", "expert_used_count", "expert_shared_count",
    "expert_feed_forward_length", "expert_group_count", "expert_group_used_count", "expert_weights_norm",
    "expert_weights_scale",
}  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **COMMON_NEUTRAL,
    **YARN_NEUTRAL,
    "expert_gating_func": (2,),  # sigmoid
}


def tensor_names(names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order; errors as in `translate_names`."""
    return translate_names(names, Words(metadata, ARCHITECTURE), _MODULE_NAMES, _LAYER_MODULE_NAMES, _BIASES)


def config_from_metadata(metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not implemented.
    """
    words = Words(metadata, ARCHITECTURE)
    words.refuse_unknown(_KEYS, _NEUTRAL)
    config = words.decoder_config(names, vocab_rows)
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["rope_type"] == "yarn":
        scaling |= words.yarn_betas()
    head_dim = words.count("attention.key_length")
    rotated = words.count("rope.dimension_count")
    if words.count("attention.value_length", head_dim) != head_dim or rotated > head_dim or rotated % 2:
        raise ModelFileError(
            f"{ARCHITECTURE}.attention.key_length is {head_dim}; expected attention.value_length to be the same and "
            f"rope.dimension_count, {rotated}, to be even and no more"
        )
    return config | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "hidden_act": "silu",
        "head_dim": head_dim,
        "partial_rotary_factor": rotated / head_dim,
        "use_qk_norm": "model.layers.0.self_attn.q_norm.weight" in names,
        "first_k_dense_replace": words.count("leading_dense_block_count", least=0),
        "moe_intermediate_size": words.count("expert_feed_forward_length"),
        "n_routed_experts": words.count("expert_count"),
        "n_shared_experts": words.count("expert_shared_count"),
        "num_experts_per_tok": words.count("expert_used_count"),
        # Absent from files made before October 2025; all published models have one group.
        "n_group": words.count("expert_group_count", 1),
        "topk_group": words.count("expert_group_used_count", 1),
        "norm_topk_prob": words.flag("expert_weights_norm"),
        "routed_scaling_factor": words.number("expert_weights_scale"),
    }


def restore(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
    """The tensor as it is: the converter changed nothing."""
    return tensor
