"""The Qwen family: Qwen2.5, Qwen3 and Qwen3-MoE; configs as published, tensors, GGUF keys.

Sources: the config.json files of Qwen's repositories; llama.cpp's loaders and converters of "qwen2", "qwen3" and
"qwen3moe".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.weights.synth.blocks import gated_mlp, grouped_attention, mixture, norm, whole_model
from freehold.weights.synth.published import Config, Published, expert_keys, llama_cpp_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""GGUF's name of each model_type."""

_CONTROL_TOKENS = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}


def _tensors(config: Config) -> Iterator[Tensor]:
    yield from whole_model(config, _layer)


def _layer(config: Config, index: int) -> Iterator[Tensor]:
    biased = config["model_type"] == "qwen2"  # of biases and norms of the heads a model has one or the other
    routed = "num_experts" in config
    yield from grouped_attention(config, biased=biased, head_norms=not biased, routed=routed)
    yield norm("post_attention_layernorm", "ffn_norm", config["hidden_size"])
    if routed:
        yield from mixture(config, config["num_experts"])
    else:
        yield from gated_mlp(config, config["intermediate_size"])


def _gguf_keys(config: Config) -> dict[str, Any]:
    architecture, own = _ARCHITECTURES[config["model_type"]], dict[str, Any]()
    if "head_dim" in config:
        own |= {f"{architecture}.attention.{x}_length": config["head_dim"] for x in ("key", "value")}
    if "num_experts" in config:
        own |= expert_keys(architecture, config, config["num_experts"])
    return {**llama_cpp_keys(architecture, config), **own}


def _published(title: str, model_type: str, class_name: str, config: Config, licence: str = "Apache-2.0") -> Published:
    ids: dict[str, Any] = {"bos_token_id": 151643, "eos_token_id": 151645}
    return Published(
        title=title,
        licence=licence,
        architecture=_ARCHITECTURES[model_type],
        config={
            "architectures": [class_name],
            "attention_dropout": 0.0,
            **ids,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "model_type": model_type,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
            **config,
        },
        generation_config={**ids, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643},
        tensors=_tensors,
        gguf_keys=_gguf_keys,
        pre_tokenizer="qwen2",
        control_tokens=_CONTROL_TOKENS,
    )


def _shape(hidden: int, n_layers: int, n_heads: int, n_kv_heads: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": n_heads,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": n_kv_heads,
        "tie_word_embeddings": tied,
    }


def _qwen25(size: str, shape: dict[str, Any], licence: str = "Apache-2.0", **changes: Any) -> Published:
    n_layers = shape["num_hidden_layers"]
    own = {"max_position_embeddings": 32768, "max_window_layers": n_layers, "sliding_window": 131072}
    return _published(f"Qwen2.5-{size}-Instruct", "qwen2", "Qwen2ForCausalLM", {**shape, **own, **changes}, licence)


def _qwen3(size: str, shape: dict[str, Any]) -> Published:
    own = {
        "attention_bias": False,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "max_window_layers": shape["num_hidden_layers"],
        "rope_scaling": None,
        "sliding_window": None,
    }
    model_type, class_name = (
        ("qwen3_moe", "Qwen3MoeForCausalLM") if "num_experts" in shape else ("qwen3", "Qwen3ForCausalLM")
    )
    return _published(f"Qwen3-{size}", model_type, class_name, {**shape, **own})


def _experts(inner: int) -> dict[str, Any]:
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


MODELS = {
    "qwen2.5-0.5b": _qwen25("0.5B", _shape(896, 24, 14, 2, 4864, tied=True)),
    "qwen2.5-1.5b": _qwen25("1.5B", _shape(1536, 28, 12, 2, 8960, tied=True)),
    "qwen2.5-3b": _qwen25("3B", _shape(2048, 36, 16, 2, 11008, tied=True), "Qwen Research"),
    "qwen2.5-7b": _qwen25("7B", _shape(3584, 28, 28, 4, 18944, tied=False), vocab_size=152064),
    "qwen2.5-14b": _qwen25("14B", _shape(5120, 48, 40, 8, 13824, tied=False), vocab_size=152064, rms_norm_eps=1e-05),
    "qwen2.5-32b": _qwen25("32B", _shape(5120, 64, 40, 8, 27648, tied=False), vocab_size=152064, rms_norm_eps=1e-05),
    "qwen3-0.6b": _qwen3("0.6B", _shape(1024, 28, 16, 8, 3072, tied=True)),
    "qwen3-1.7b": _qwen3("1.7B", _shape(2048, 28, 16, 8, 6144, tied=True)),
    "qwen3-4b": _qwen3("4B", _shape(2560, 36, 32, 8, 9728, tied=True)),
    "qwen3-8b": _qwen3("8B", _shape(4096, 36, 32, 8, 12288, tied=False)),
    "qwen3-14b": _qwen3("14B", _shape(5120, 40, 40, 8, 17408, tied=False)),
    "qwen3-32b": _qwen3("32B", _shape(5120, 64, 64, 8, 25600, tied=False)),
    "qwen3-30b-a3b": _qwen3("30B-A3B", _shape(2048, 48, 32, 4, 6144, tied=False) | _experts(768)),
    "qwen3-235b-a22b": _qwen3("235B-A22B", _shape(4096, 94, 64, 4, 12288, tied=False) | _experts(1536)),
}
