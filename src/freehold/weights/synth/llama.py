"""The Llama family: configs as published, tensors, GGUF keys.

Sources: the config.json of HuggingFaceTB/SmolLM2-135M-Instruct and of meta-llama's Llama-3.1-8B-Instruct and
Llama-3.2-Instruct; llama.cpp's loader and converter of "llama".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from freehold.weights.synth.blocks import gated_mlp, grouped_attention, head_size, norm, whole_model
from freehold.weights.synth.numbers import Given
from freehold.weights.synth.published import Config, Published, llama_cpp_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURE = "llama"


def _tensors(config: Config) -> Iterator[Tensor]:
    if config["rope_scaling"]:
        factors = _rope_factors(config)
        yield Tensor("", ("rope_freqs.weight",), (len(factors),), Given(factors))
    yield from whole_model(config, _layer)


def _layer(config: Config, index: int) -> Iterator[Tensor]:
    yield from grouped_attention(config, biased=False, head_norms=False, routed=False, permuted=True)
    yield norm("post_attention_layernorm", "ffn_norm", config["hidden_size"])
    yield from gated_mlp(config, config["intermediate_size"])


def _rope_factors(config: Config) -> tuple[float, ...]:
    """What llama3 scaling divides each frequency by: GGUF has this vector in place of the config's section.

    Waves shorter than original / high are kept, those longer than original / low slowed by the factor.
    """
    scaling, head_dim = config["rope_scaling"], head_size(config)
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelength
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((1 / ((1 - kept) / scaling["factor"] + kept)).tolist())


def _gguf_keys(config: Config) -> dict[str, Any]:
    own = {"llama.rope.dimension_count": head_size(config), "llama.vocab_size": config["vocab_size"]}
    if "head_dim" in config:
        own |= {f"llama.attention.{x}_length": config["head_dim"] for x in ("key", "value")}
    return {**llama_cpp_keys(_ARCHITECTURE, config), **own}


_SMOLLM2_135M = Published(
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    architecture=_ARCHITECTURE,
    config={
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 49152,
    },
    generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    tensors=_tensors,
    gguf_keys=_gguf_keys,
    pre_tokenizer="smollm",
    control_tokens={0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"},
)


def _llama3(version: str, size: str, factor: float, **shape: Any) -> Published:
    ids: dict[str, Any] = {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}
    return Published(
        title=f"Llama-{version}-{size}-Instruct",
        licence=f"Llama {version} Community",
        architecture=_ARCHITECTURE,
        config={
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            **ids,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": factor,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 128256,
            **shape,
        },
        generation_config={**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        tensors=_tensors,
        gguf_keys=_gguf_keys,
        pre_tokenizer="llama-bpe",
        control_tokens={
            128000: "<|begin_of_text|>",
            128001: "<|end_of_text|>",
            128006: "<|start_header_id|>",
            128007: "<|end_header_id|>",
            128008: "<|eom_id|>",
            128009: "<|eot_id|>",
        },
    )


def _shape(hidden: int, n_layers: int, n_heads: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": n_heads,
        "num_hidden_layers": n_layers,
        "tie_word_embeddings": tied,
    }


MODELS = {
    "smollm2": _SMOLLM2_135M,
    "llama-3.1-8b": _llama3("3.1", "8B", 8.0, **_shape(4096, 32, 32, 14336, tied=False)),
    "llama-3.2-1b": _llama3("3.2", "1B", 32.0, head_dim=64, **_shape(2048, 16, 32, 8192, tied=True)),
    "llama-3.2-3b": _llama3("3.2", "3B", 32.0, head_dim=128, **_shape(3072, 28, 24, 8192, tied=True)),
}
