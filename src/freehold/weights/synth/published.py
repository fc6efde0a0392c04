"""What a publisher says of a model besides its numbers, as `synth` needs it.

Owns one dataclass; a family's file fills it for each of its models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from freehold.weights.synth.tensors import Tensor

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """One published model without its weights.

    config, generation_config: as in the files of those names. tensors: all of them, in the order of the computation.
    gguf_keys: what llama.cpp's loader of the architecture reads, without the tokenizer's keys. pre_tokenizer: GGUF's
    name for how text is cut. control_tokens: id to text, for a vocabulary that has nothing else.
    """

    title: str
    licence: str
    architecture: str  # GGUF's name
    config: Config
    generation_config: Config
    tensors: Callable[[Config], Iterator[Tensor]]
    gguf_keys: Callable[[Config], dict[str, Any]]
    pre_tokenizer: str
    control_tokens: Mapping[int, str]

    @property
    def n_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def cut(self, n_layers: int) -> Published:
        """The same model with only its first layers."""
        config = {**self.config, "num_hidden_layers": n_layers}
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:n_layers]
        return replace(self, config=config)


def llama_cpp_keys(architecture: str, config: Config) -> dict[str, Any]:
    """The keys every architecture has."""
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
    }
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def expert_keys(architecture: str, config: Config, n_experts: int) -> dict[str, Any]:
    """The keys every mixture of experts has."""
    keys = {
        "expert_count": n_experts,
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def scored_expert_keys(architecture: str, config: Config, n_experts: int) -> dict[str, Any]:
    """Those of DeepSeek's kind: shared experts, groups, a choice of scores and what becomes of the chosen ones'."""
    keys: dict[str, Any] = {
        "expert_shared_count": config["n_shared_experts"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": {"softmax": 1, "sigmoid": 2}[config.get("scoring_func", "sigmoid")],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "leading_dense_block_count": config["first_k_dense_replace"],
    }
    if config["norm_topk_prob"]:
        keys["expert_weights_norm"] = True
    named = {f"{architecture}.{key}": value for key, value in keys.items()}
    return {**expert_keys(architecture, config, n_experts), **named}
