"""GLM-4.5 and GLM-4.5-Air: configs as published, tensors, GGUF keys.

Sources: the config.json files of zai-org's repositories; llama.cpp's loader and converter of "glm4moe". They have one
layer more, which predicts a second token and takes no part in the model's own answer: it is left out, and
`num_nextn_predict_layers` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.weights.synth.blocks import gated_mlp, grouped_attention, mixture, norm, whole_model
from freehold.weights.synth.published import Config, Published, llama_cpp_keys, scored_expert_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURE = "glm4moe"

_CONTROL_TOKENS = {
    151329: "<|endoftext|>",
    151331: "[gMASK]",
    151333: "<sop>",
    151335: "<|system|>",
    151336: "<|user|>",
    151337: "<|assistant|>",
    151338: "<|observation|>",
}


def _tensors(config: Config) -> Iterator[Tensor]:
    yield from whole_model(config, _layer)


def _layer(config: Config, index: int) -> Iterator[Tensor]:
    yield from grouped_attention(config, biased=True, head_norms=config["use_qk_norm"], routed=True)
    yield norm("post_attention_layernorm", "post_attention_norm", config["hidden_size"])
    if index < config["first_k_dense_replace"]:
        yield from gated_mlp(config, config["intermediate_size"])
    else:
        yield from mixture(config, config["n_routed_experts"], n_shared=config["n_shared_experts"], corrected=True)


def _gguf_keys(config: Config) -> dict[str, Any]:
    own = {
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": int(config["head_dim"] * config["partial_rotary_factor"]),
    }
    return {
        **llama_cpp_keys(_ARCHITECTURE, config),
        **scored_expert_keys(_ARCHITECTURE, config, config["n_routed_experts"]),
        **{f"{_ARCHITECTURE}.{key}": value for key, value in own.items()},
    }


def _published(title: str, **own: Any) -> Published:
    ids = {"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329}
    return Published(
        title=title,
        licence="MIT",
        architecture=_ARCHITECTURE,
        config={
            "architectures": ["Glm4MoeForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            **ids,
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "model_type": "glm4_moe",
            "n_group": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 96,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 8,
            "num_nextn_predict_layers": 0,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 151552,
            **own,
        },
        generation_config=ids,
        tensors=_tensors,
        gguf_keys=_gguf_keys,
        pre_tokenizer="glm4",
        control_tokens=_CONTROL_TOKENS,
    )


_GLM_4_5 = {
    "first_k_dense_replace": 3,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_hidden_layers": 92,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}
_AIR = {
    "first_k_dense_replace": 1,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_hidden_layers": 46,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}

MODELS = {
    "glm-4.5": _published("GLM-4.5", **_GLM_4_5),
    "glm-4.5-air": _published("GLM-4.5-Air", **_AIR),
    "glm-4.6": _published("GLM-4.6", **_GLM_4_5, max_position_embeddings=202752),
}
