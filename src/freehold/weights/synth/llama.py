"""The Llama family: configs as published, tensors with the scale of their numbers, GGUF keys.

Source: the config.json of HuggingFaceTB/SmolLM2-135M-Instruct; llama.cpp's loader and converter of "llama".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.weights.synth.numbers import Codes, Floats
from freehold.weights.synth.published import Config, Published, llama_cpp_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURE = "llama"
_NORM = Floats(1.0, 0.05)
_LOGITS_STD = 2.0


def _tensors(config: Config) -> Iterator[Tensor]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    assert config["tie_word_embeddings"], "an untied head is not written yet"
    embedding = Codes(_LOGITS_STD * hidden**-0.5)  # it is the head as well
    yield Tensor("model.embed_tokens.weight", ("token_embd.weight",), (vocab, hidden), embedding)
    for layer in range(config["num_hidden_layers"]):
        yield from _layer(config, f"model.layers.{layer}.", f"blk.{layer}.")
    yield Tensor("model.norm.weight", ("output_norm.weight",), (hidden,), _NORM)


def _layer(config: Config, prefix: str, gguf_prefix: str) -> Iterator[Tensor]:
    """A product over n inputs of order 1 with weights of 1 / sqrt(n) is of order 1 again."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv_rows = config["num_key_value_heads"] * head_dim
    yield Tensor(f"{prefix}input_layernorm.weight", (f"{gguf_prefix}attn_norm.weight",), (hidden,), _NORM)
    yield Tensor(f"{prefix}post_attention_layernorm.weight", (f"{gguf_prefix}ffn_norm.weight",), (hidden,), _NORM)
    for name, gguf, rows, cols, rotated_rows in (
        ("self_attn.q_proj", "attn_q", hidden, hidden, head_dim),
        ("self_attn.k_proj", "attn_k", kv_rows, hidden, head_dim),
        ("self_attn.v_proj", "attn_v", kv_rows, hidden, 0),
        ("self_attn.o_proj", "attn_output", hidden, hidden, 0),
        ("mlp.gate_proj", "ffn_gate", inner, hidden, 0),
        ("mlp.up_proj", "ffn_up", inner, hidden, 0),
        ("mlp.down_proj", "ffn_down", hidden, inner, 0),
    ):
        names = (f"{gguf_prefix}{gguf}.weight",)
        yield Tensor(f"{prefix}{name}.weight", names, (rows, cols), Codes(cols**-0.5), rotated_rows)


def _gguf_keys(config: Config) -> dict[str, Any]:
    own = {
        "llama.rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "llama.vocab_size": config["vocab_size"],
    }
    return {"general.file_type": 7, **llama_cpp_keys(_ARCHITECTURE, config), **own}  # 7: mostly Q8_0


SMOLLM2_135M = Published(
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
