"""GGUF's words for the deepseek2 architecture (DeepSeek V2 to V3.1, Kimi-K2), translated to Hugging Face's.

Owns its tables of keys and tensor names, and what older files leave unsaid of the published models. The numbers are
those of the publisher: rotated rows keep their order, since llama.cpp rotates neighbours here as DeepSeek does. Newer
files store kv_b_proj in two parts, for which Hugging Face has no names: k_b_proj [heads, kv_lora_rank,
qk_nope_head_dim], each head transposed, and v_b_proj [heads, v_head_dim, kv_lora_rank]. Knows nothing of how the file
is laid out.

Source: the tables of PyPI `gguf` (constants.py, MODEL_ARCH.DEEPSEEK2), llama.cpp's converter and its loader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from freehold.errors import ModelFileError, UnsupportedError
from freehold.formats import QTensor
from freehold.weights.gguf_words import COMMON_KEYS, COMMON_NEUTRAL, YARN_BETAS, YARN_NEUTRAL, Words, translate_names
from freehold.weights.quote import quote

ARCHITECTURE = "deepseek2"

_MODULE_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_KV_B = "self_attn.kv_b_proj"
_KV_B_PARTS = ("self_attn.k_b_proj", "self_attn.v_b_proj")
_LAYER_MODULE_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": _KV_B,
    "attn_k_b": _KV_B_PARTS[0],
    "attn_v_b": _KV_B_PARTS[1],
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
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
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_KEYS = COMMON_KEYS | YARN_BETAS | {
    "leading_dense_block_count", "nextn_predict_layers", "attention.q_lora_rank", "attention.kv_lora_rank",
    "attention.key_length_mla", "attention.value_length_mla", "expert_count", "expert_used_count",
    "expert_shared_count", "expert_feed_forward_length", "expert_group_count", "expert_group_used_count",
    "expert_gating_func", "expert_weights_norm", "expert_weights_scale", _LOG_MULTIPLIER,
}  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {**COMMON_NEUTRAL, **YARN_NEUTRAL}
_SOFTMAX, _SIGMOID = 1, 2  # of GGUF's expert_gating_func


class _Unsaid(NamedTuple):
    """What a published model's config says and its files made before autumn 2025 do not."""

    n_group: int
    topk_group: int
    beta_fast: float = 32.0


_PUBLISHED: Mapping[tuple[int, int], _Unsaid] = {
    (2048, 64): _Unsaid(1, 1),  # V2-Lite, Coder-V2-Lite
    (5120, 160): _Unsaid(8, 3),  # V2, V2.5, Coder-V2
    (7168, 256): _Unsaid(8, 4),  # V3, R1, V3.1
    (7168, 384): _Unsaid(1, 1, beta_fast=1.0),  # Kimi-K2, from the first to Thinking
}
"""By hidden size and number of experts. Other models of these sizes have the same values (Moonlight, GLM-4.7-Flash), or
have them in every file (Kimi-K2.5)."""


def tensor_names(names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order; errors as in `translate_names`."""
    found = translate_names(names, Words(metadata, ARCHITECTURE), _MODULE_NAMES, _LAYER_MODULE_NAMES, biases=())
    for ours, theirs in found.items():
        for part in _KV_B_PARTS:
            if _KV_B in ours and ours.replace(_KV_B, part) in found:
                both = f"{quote(theirs)} and {quote(found[ours.replace(_KV_B, part)])}"
                raise UnsupportedError(f"the tensors {both} hold the same numbers; expected one form or the other")
    return found


def config_from_metadata(metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing, impossible or contradictory value, UnsupportedError for a key or a routing
    that is not implemented, or where an older file leaves unsaid what only a published model's config tells.
    """
    words = Words(metadata, ARCHITECTURE)
    words.refuse_unknown(_KEYS, _NEUTRAL)
    config = words.decoder_config(names, vocab_rows)
    unsaid = _PUBLISHED.get((config["hidden_size"], words.count("expert_count")))
    config |= {"hidden_act": "silu"} | _attention(words, config) | _experts(words) | _routing(words, names, unsaid)
    if config["rope_scaling"] is not None and config["rope_scaling"]["rope_type"] == "yarn":
        config["rope_scaling"] |= _yarn(words, unsaid)
    elif _LOG_MULTIPLIER in words:
        raise UnsupportedError(
            f"the GGUF key '{ARCHITECTURE}.{_LOG_MULTIPLIER}' is there, but rope scaling is not yarn"
        )
    return config


def restore(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
    """The tensor as it is: what the converter changed has its own names."""
    return tensor


def _attention(words: Words, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of latent attention. Newer files describe it as one key head as wide as the latent, with keys `_mla` for
    the heads that the weights were made for; older ones as those heads."""
    heads, latent = config["num_attention_heads"], words.count("attention.kv_lora_rank")
    rotated = words.count("rope.dimension_count")
    if config["num_key_value_heads"] not in (1, heads):
        raise ModelFileError(
            f"{ARCHITECTURE}.attention.head_count_kv is {config['num_key_value_heads']}; expected 1 or {heads}"
        )
    ending = "_mla" if "attention.key_length_mla" in words or "attention.value_length_mla" in words else ""
    key_length = words.count(f"attention.key_length{ending}")
    if key_length <= rotated:
        raise ModelFileError(
            f"{ARCHITECTURE}.attention.key_length{ending} is {key_length}; "
            f"expected more than rope.dimension_count, {rotated}"
        )
    if ending:
        for key, expected in (("attention.key_length", latent + rotated), ("attention.value_length", latent)):
            if words.count(key, expected) != expected:
                raise ModelFileError(f"{ARCHITECTURE}.{key} is {words.count(key)}; expected {expected} of the latent")
    return {
        "num_key_value_heads": heads,
        "q_lora_rank": words.count("attention.q_lora_rank") if "attention.q_lora_rank" in words else None,
        "kv_lora_rank": latent,
        "qk_nope_head_dim": key_length - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": words.count(f"attention.value_length{ending}"),
    }


def _experts(words: Words) -> dict[str, Any]:
    return {
        "first_k_dense_replace": words.count("leading_dense_block_count", least=0),
        "moe_intermediate_size": words.count("expert_feed_forward_length"),
        "n_routed_experts": words.count("expert_count"),
        "n_shared_experts": words.count("expert_shared_count"),
        "num_experts_per_tok": words.count("expert_used_count"),
        "norm_topk_prob": words.flag("expert_weights_norm", False),  # written only where it is true
        "routed_scaling_factor": words.number("expert_weights_scale"),
    }


def _routing(words: Words, names: Collection[str], unsaid: _Unsaid | None) -> dict[str, Any]:
    """Which model this is: V2 scores with softmax, V3 with sigmoid and a bias. Files from before V3 do not say."""
    gating = words.count("expert_gating_func", _SOFTMAX)
    if gating not in (_SOFTMAX, _SIGMOID):
        raise UnsupportedError(
            f"{ARCHITECTURE}.expert_gating_func is {gating}; Freehold implements 1 (softmax) and 2 (sigmoid)"
        )
    if gating == _SOFTMAX and any(name.endswith(".e_score_correction_bias") for name in names):
        said = "softmax" if "expert_gating_func" in words else "missing"
        raise UnsupportedError(
            f"{ARCHITECTURE}.expert_gating_func is {said}, but there are tensors exp_probs_b.bias, known only with "
            f"sigmoid; convert the model again with a newer llama.cpp"
        )
    n_group, topk_group = _groups(words, unsaid)
    if gating == _SIGMOID:
        kind, class_name, scoring, method = "deepseek_v3", "DeepseekV3ForCausalLM", "sigmoid", "noaux_tc"
    else:
        method = "greedy" if n_group == 1 else "group_limited_greedy"
        kind, class_name, scoring = "deepseek_v2", "DeepseekV2ForCausalLM", "softmax"
    return {
        "architectures": [class_name],
        "model_type": kind,
        "scoring_func": scoring,
        "topk_method": method,
        "n_group": n_group,
        "topk_group": topk_group,
    }


def _groups(words: Words, unsaid: _Unsaid | None) -> tuple[int, int]:
    """n_group and topk_group. llama.cpp takes their absence for no groups, which for V2 and V3 is not what they are."""
    if "expert_group_count" in words or "expert_group_used_count" in words:
        n_group, topk_group = words.count("expert_group_count"), words.count("expert_group_used_count")
    elif unsaid is not None:
        n_group, topk_group = unsaid.n_group, unsaid.topk_group
    else:
        raise UnsupportedError(
            f"the GGUF key '{ARCHITECTURE}.expert_group_count' is missing and no published model has these sizes, so "
            f"how experts are chosen cannot be known; convert the model again with a newer llama.cpp"
        )
    if words.count("expert_count") % n_group or topk_group > n_group:
        raise ModelFileError(
            f"{ARCHITECTURE}.expert_group_count is {n_group} and expert_group_used_count {topk_group}; expected groups "
            f"of equal size out of {words.count('expert_count')} experts, and no more used than there are"
        )
    return n_group, topk_group


def _yarn(words: Words, unsaid: _Unsaid | None) -> dict[str, Any]:
    """The file has mscale_all_dim / 10. It lacks mscale, which all published models, and llama.cpp, set to the same."""
    mscale = float(str(np.float32(10.0 * words.number(_LOG_MULTIPLIER))))
    return {
        "original_max_position_embeddings": words.count("rope.scaling.original_context_length"),
        **words.yarn_betas(32.0 if unsaid is None else unsaid.beta_fast),
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }
