"""The gpt-oss family: configs as published, tensors with the scale of their numbers, GGUF keys.

Sources: the config.json and generation_config.json of openai/gpt-oss-20b and -120b; llama.cpp's loader of "gpt-oss".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.weights.synth.codes import Codes
from freehold.weights.synth.numbers import Floats, Mxfp4, Numbers
from freehold.weights.synth.published import Config, Published, llama_cpp_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURE = "gpt-oss"
_NORM, _BIAS, _SINK = Floats(1.0, 0.05), Floats(0.0, 0.02), Floats(0.0, 1.0)
_EMBEDDING = Codes(1.2)
_LOGITS_STD = 2.0

_CONTROL_TOKENS = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}


def _config(n_layers: int, n_experts: int) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(n_layers)],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": 8,
        "num_local_experts": n_experts,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 201088,
    }


def _tensors(config: Config) -> Iterator[Tensor]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield Tensor("model.embed_tokens.weight", ("token_embd.weight",), (vocab, hidden), _EMBEDDING)
    for layer in range(config["num_hidden_layers"]):
        for name, gguf_names, shape, numbers in _layer(config):
            full_names = tuple(f"blk.{layer}.{gguf_name}" for gguf_name in gguf_names.split())
            yield Tensor(f"model.layers.{layer}.{name}", full_names, shape, numbers)
    yield Tensor("model.norm.weight", ("output_norm.weight",), (hidden,), _NORM)
    yield Tensor("lm_head.weight", ("output.weight",), (vocab, hidden), Codes(_LOGITS_STD * hidden**-0.5))


def _layer(config: Config) -> Iterator[tuple[str, str, tuple[int, ...], Numbers]]:
    """Names here and in GGUF, shape and numbers.

    A product over n inputs of order 1 with weights of 1 / sqrt(n) is of order 1 again. Scores of attention are kept
    near 1 (the rope's factor of 1.35 counts twice), and what attention adds small, because it is much the same for all
    tokens and would draw them to the same experts. Over 24 layers the residual's deviation grows from 1.2 to 2.5.
    """
    hidden, inner, n_experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    yield "input_layernorm.weight", "attn_norm.weight", (hidden,), _NORM
    for name, gguf, rows, cols, gain in (
        ("q_proj", "attn_q", q_rows, hidden, 1.0),
        ("k_proj", "attn_k", kv_rows, hidden, 0.5),
        ("v_proj", "attn_v", kv_rows, hidden, 1.0),
        ("o_proj", "attn_output", hidden, q_rows, 0.5),
    ):
        yield f"self_attn.{name}.weight", f"{gguf}.weight", (rows, cols), Codes(gain * cols**-0.5)
        yield f"self_attn.{name}.bias", f"{gguf}.bias", (rows,), _BIAS
    yield "self_attn.sinks", "attn_sinks.weight", (config["num_attention_heads"],), _SINK
    yield "post_attention_layernorm.weight", "post_attention_norm.weight", (hidden,), _NORM
    yield "mlp.router.weight", "ffn_gate_inp.weight", (n_experts, hidden), Floats(0.0, hidden**-0.5)
    yield "mlp.router.bias", "ffn_gate_inp.bias", (n_experts,), _BIAS
    for name, gguf, rows, cols in (
        ("gate_up_proj", "ffn_gate_exps.{0} ffn_up_exps.{0}", 2 * inner, hidden),
        ("down_proj", "ffn_down_exps.{0}", hidden, inner),
    ):
        yield f"mlp.experts.{name}", gguf.format("weight"), (n_experts, rows, cols), Mxfp4(cols**-0.5)
        yield f"mlp.experts.{name}_bias", gguf.format("bias"), (n_experts, rows), _BIAS


def _gguf_keys(config: Config) -> dict[str, Any]:
    keys = {
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.sliding_window": config["sliding_window"],
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["intermediate_size"],
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(config["rope_scaling"]["factor"]),
        "rope.scaling.original_context_length": config["rope_scaling"]["original_max_position_embeddings"],
    }
    own = {f"{_ARCHITECTURE}.{key}": value for key, value in keys.items()}
    return {"general.file_type": 38, **llama_cpp_keys(_ARCHITECTURE, config), **own}  # 38: mostly MXFP4


def _published(title: str, n_layers: int, n_experts: int) -> Published:
    return Published(
        title=title,
        licence="Apache-2.0",
        architecture=_ARCHITECTURE,
        config=_config(n_layers, n_experts),
        generation_config={
            "bos_token_id": 199998,
            "do_sample": True,
            "eos_token_id": [200002, 199999, 200012],
            "pad_token_id": 199999,
        },
        tensors=_tensors,
        gguf_keys=_gguf_keys,
        pre_tokenizer="gpt-4o",
        control_tokens=_CONTROL_TOKENS,
    )


MODELS = {
    "gpt-oss-20b": _published("gpt-oss-20b", n_layers=24, n_experts=32),
    "gpt-oss-120b": _published("gpt-oss-120b", n_layers=36, n_experts=128),
}
