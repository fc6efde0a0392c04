"""DeepSeek V2 and V3, and Kimi-K2, which is of their form: configs as published, tensors, GGUF keys.

Sources: the config.json files of deepseek-ai's and moonshotai's repositories; llama.cpp's loader and converter of
"deepseek2". V3 has one layer more, which predicts a second token and takes no part in the model's own answer: it is
left out, and `num_nextn_predict_layers` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from freehold.weights.synth.blocks import ROUTED_OUT, gated_mlp, matrix, mixture, norm, whole_model
from freehold.weights.synth.published import Config, Published, llama_cpp_keys, scored_expert_keys
from freehold.weights.synth.tensors import Tensor

_ARCHITECTURE = "deepseek2"


def _tensors(config: Config) -> Iterator[Tensor]:
    yield from whole_model(config, _layer)


def _layer(config: Config, index: int) -> Iterator[Tensor]:
    fp8 = "quantization_config" in config
    yield from _latent_attention(config, fp8)
    yield norm("post_attention_layernorm", "ffn_norm", config["hidden_size"])
    if index < config["first_k_dense_replace"]:
        yield from gated_mlp(config, config["intermediate_size"], fp8=fp8)
    else:
        corrected, n_shared = config["topk_method"] == "noaux_tc", config["n_shared_experts"]
        yield from mixture(config, config["n_routed_experts"], n_shared=n_shared, corrected=corrected, fp8=fp8)


def _latent_attention(config: Config, fp8: bool) -> Iterator[Tensor]:
    """Keys and values of every head from one latent vector, which is normalised; a rotated part of the keys beside it.

    Queries are small: the scale of the scores has the square of YaRN's factor, 1.6 to 1.9.
    """
    hidden, n_heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    keys, rotated, values = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rows, q_latent = n_heads * (keys + rotated), config["q_lora_rank"]
    yield norm("input_layernorm", "attn_norm", hidden)
    if q_latent is None:
        yield matrix("self_attn.q_proj", "attn_q", (q_rows, hidden), gain=0.5, fp8=fp8)
    else:
        yield matrix("self_attn.q_a_proj", "attn_q_a", (q_latent, hidden), fp8=fp8)
        yield norm("self_attn.q_a_layernorm", "attn_q_a_norm", q_latent)
        yield matrix("self_attn.q_b_proj", "attn_q_b", (q_rows, q_latent), gain=0.5, fp8=fp8)
    yield matrix("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", (latent + rotated, hidden), fp8=fp8)
    yield norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", latent)
    kv_b = matrix("self_attn.kv_b_proj", "", (n_heads * (keys + values), latent), fp8=fp8)
    yield replace(kv_b, gguf_names=("attn_k_b.weight", "attn_v_b.weight"), head_rows=(keys, values))
    yield matrix("self_attn.o_proj", "attn_output", (hidden, n_heads * values), gain=ROUTED_OUT, fp8=fp8)


def _gguf_keys(config: Config) -> dict[str, Any]:
    """Attention as llama.cpp computes it: all heads share one of keys, the latent vector and the rotated part."""
    latent, rotated, yarn = config["kv_lora_rank"], config["qk_rope_head_dim"], config["rope_scaling"]
    keys: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": latent + rotated,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
        "attention.kv_lora_rank": latent,
        "attention.value_length": latent,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rotated,
        "rope.scaling.factor": float(yarn["factor"]),
        "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
        "rope.scaling.type": "yarn",
        "rope.scaling.yarn_beta_fast": float(yarn["beta_fast"]),
        "rope.scaling.yarn_beta_slow": float(yarn["beta_slow"]),
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn["mscale_all_dim"],
        "vocab_size": config["vocab_size"],
    }
    if config["q_lora_rank"] is not None:
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    return {
        **llama_cpp_keys(_ARCHITECTURE, config),
        **scored_expert_keys(_ARCHITECTURE, config, config["n_routed_experts"]),
        **{f"{_ARCHITECTURE}.{key}": value for key, value in keys.items()},
    }


def _config(model_type: str, class_name: str, bos: int, eos: int, **own: Any) -> dict[str, Any]:
    return {
        "architectures": [class_name],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "model_type": model_type,
        "moe_layer_freq": 1,
        "pretraining_tp": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "seq_aux": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        **own,
    }


def _yarn(factor: int, mscale: float, beta_fast: int = 32) -> dict[str, Any]:
    return {
        "beta_fast": beta_fast,
        "beta_slow": 1,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    }


def _v2(**own: Any) -> dict[str, Any]:
    return _config(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        100000,
        100001,
        first_k_dense_replace=1,
        n_shared_experts=2,
        norm_topk_prob=False,
        num_experts_per_tok=6,
        scoring_func="softmax",
        vocab_size=102400,
        **own,
    )


def _v3(model_type: str, bos: int, eos: int, **own: Any) -> dict[str, Any]:
    return _config(
        model_type,
        "DeepseekV3ForCausalLM",
        bos,
        eos,
        ep_size=1,
        hidden_size=7168,
        intermediate_size=18432,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_experts_per_tok=8,
        num_hidden_layers=61,
        num_nextn_predict_layers=0,
        q_lora_rank=1536,
        quantization_config={
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        **own,
    )


def _published(
    title: str, licence: str, pre_tokenizer: str, config: dict[str, Any], control_tokens: dict[int, str] | None = None
) -> Published:
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    marks = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")  # noqa: RUF001, as the publisher spells them
    return Published(
        title=title,
        licence=licence,
        architecture=_ARCHITECTURE,
        config=config,
        generation_config=ids,
        tensors=_tensors,
        gguf_keys=_gguf_keys,
        pre_tokenizer=pre_tokenizer,
        control_tokens=control_tokens or dict(zip(ids.values(), marks, strict=True)),
    )


_LITE = _v2(
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_group=1,
    n_routed_experts=64,
    num_attention_heads=16,
    num_hidden_layers=27,
    num_key_value_heads=16,
    q_lora_rank=None,
    rope_scaling=_yarn(40, 0.707),
    routed_scaling_factor=1.0,
    topk_group=1,
    topk_method="greedy",
)
_V2 = _v2(
    hidden_size=5120,
    intermediate_size=12288,
    moe_intermediate_size=1536,
    n_group=8,
    n_routed_experts=160,
    num_attention_heads=128,
    num_hidden_layers=60,
    num_key_value_heads=128,
    q_lora_rank=1536,
    rope_scaling=_yarn(40, 1.0),
    routed_scaling_factor=16.0,
    topk_group=3,
    topk_method="group_limited_greedy",
)
_V3 = _v3(
    "deepseek_v3",
    0,
    1,
    first_k_dense_replace=3,
    n_group=8,
    n_routed_experts=256,
    num_attention_heads=128,
    num_key_value_heads=128,
    rope_scaling=_yarn(40, 1.0),
    routed_scaling_factor=2.5,
    topk_group=4,
    vocab_size=129280,
)
_KIMI = _v3(
    "kimi_k2",
    163584,
    163585,
    first_k_dense_replace=1,
    max_position_embeddings=131072,
    n_group=1,
    n_routed_experts=384,
    num_attention_heads=64,
    num_key_value_heads=64,
    rope_scaling=_yarn(32, 1.0, beta_fast=1),
    rope_theta=50000.0,
    routed_scaling_factor=2.827,
    topk_group=1,
    vocab_size=163840,
)
_V31 = _V3 | {"quantization_config": {**_V3["quantization_config"], "scale_fmt": "ue8m0"}}
_KIMI_TOKENS = {163584: "[BOS]", 163585: "[EOS]", 163586: "<|im_end|>"}

MODELS = {
    "deepseek-v2-lite": _published("DeepSeek-V2-Lite-Chat", "DeepSeek Model License", "deepseek-llm", _LITE),
    "deepseek-v2": _published("DeepSeek-V2-Chat", "DeepSeek Model License", "deepseek-llm", _V2),
    "deepseek-v3": _published("DeepSeek-V3", "DeepSeek Model License", "deepseek-v3", _V3),
    "deepseek-r1": _published("DeepSeek-R1", "MIT", "deepseek-v3", _V3),
    "deepseek-v3.1": _published("DeepSeek-V3.1", "MIT", "deepseek-v3", _V31),
    "kimi-k2": _published("Kimi-K2-Instruct", "Modified MIT", "kimi-k2", _KIMI, _KIMI_TOKENS),
}
