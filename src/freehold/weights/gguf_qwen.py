"""GGUF's words for the qwen2, qwen3 and qwen3moe architectures, translated to Hugging Face's.

Owns their tables of keys and tensor names. The numbers are those of the publisher: rows of q and k keep their order,
since llama.cpp rotates these models in halves as Hugging Face does, and a layer's experts are stacked in one tensor per
projection. Knows nothing of how the file is laid out.

Source: the tables of PyPI `gguf` (constants.py, MODEL_ARCH.QWEN2 to QWEN3MOE) and what llama.cpp's converter writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from freehold.formats import QTensor
from freehold.weights.gguf_words import COMMON_KEYS, COMMON_NEUTRAL, YARN_BETAS, YARN_NEUTRAL, Words, translate_names

_MODULE_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_HEAD_NORMS: Mapping[str, str] = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_MLP: Mapping[str, str] = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_KEYS = COMMON_KEYS | YARN_BETAS
_EXPERT_KEYS = {"expert_count", "expert_used_count", "expert_feed_forward_length"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {**COMMON_NEUTRAL, **YARN_NEUTRAL}
_NO_EXPERTS: Mapping[str, tuple[Any, ...]] = {"expert_count": (0,), "expert_used_count": (0,)}
_SOFTMAX: Mapping[str, tuple[Any, ...]] = {  # over all experts, divided by its sum over the chosen ones
    "expert_gating_func": (1,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1.0,),
    "expert_shared_count": (0,),
}


@dataclass(frozen=True)
class _Kind:
    """What one architecture has: its name in config.json, its layers' modules, its own keys."""

    model_type: str
    class_name: str
    layer_modules: Mapping[str, str]
    biases: tuple[str, ...]  # endings of their names
    keys: Collection[str]
    neutral: Mapping[str, tuple[Any, ...]]


_QKV_BIASES = tuple(f"self_attn.{x}_proj.bias" for x in "qkv")
_KINDS: Mapping[str, _Kind] = {
    "qwen2": _Kind(
        "qwen2", "Qwen2ForCausalLM", {**_ATTENTION, **_MLP}, _QKV_BIASES, _KEYS, {**_NEUTRAL, **_NO_EXPERTS},
    ),
    "qwen3": _Kind(
        "qwen3", "Qwen3ForCausalLM", {**_ATTENTION, **_HEAD_NORMS, **_MLP}, (), _KEYS, {**_NEUTRAL, **_NO_EXPERTS},
    ),
    "qwen3moe": _Kind(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**_ATTENTION, **_HEAD_NORMS, **_EXPERTS}, (), _KEYS | _EXPERT_KEYS,
        {**_NEUTRAL, **_SOFTMAX},
    ),
}  # fmt: skip
ARCHITECTURES = tuple(_KINDS)


def tensor_names(names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order; errors as in `translate_names`."""
    words = Words(metadata, metadata["general.architecture"])
    kind = _KINDS[words.architecture]
    return translate_names(names, words, _MODULE_NAMES, kind.layer_modules, kind.biases)


def config_from_metadata(metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int) -> dict[str, Any]:
    """The config.json that this model would have. `names` are Hugging Face's, `vocab_rows` are the embedding's rows.

    Raises ModelFileError for a missing or impossible value, UnsupportedError for a key that is not implemented.
    """
    words = Words(metadata, metadata["general.architecture"])
    kind = _KINDS[words.architecture]
    words.refuse_unknown(kind.keys, kind.neutral)
    config = words.common_config(names, vocab_rows)
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["rope_type"] == "yarn":
        scaling |= words.yarn_betas()
    config |= {"architectures": [kind.class_name], "model_type": kind.model_type, "hidden_act": "silu"}
    if kind.model_type == "qwen3_moe":
        config |= {
            "moe_intermediate_size": words.count("expert_feed_forward_length"),
            "num_experts": words.count("expert_count"),
            "num_experts_per_tok": words.count("expert_used_count"),
            "norm_topk_prob": True,  # llama.cpp knows no other kind
        }
    return config


def restore(name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
    """The tensor as it is: the converter changed nothing."""
    return tensor
