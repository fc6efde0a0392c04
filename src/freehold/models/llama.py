"""Llama: pre-norm blocks of grouped-query attention and a gated MLP. Llama 2 and 3, SmolLM2, Mistral, SmolLM3.

    x += W_o attend(rope(W_q t), rope(W_k t), W_v t)      t = rms(x)
    x += W_down (silu(W_gate t) * W_up t)                 t = rms(x)
    logits = W_head rms(x)

SmolLM3 leaves every fourth layer without rotation. Mistral is of this form since 0.2, when it gave up its window.

Source: the Llama papers and transformers' modeling_llama, modeling_mistral and modeling_smollm3; rotation is of
half-split pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.core import KVSpec
from freehold.errors import ModelFileError, UnsupportedError
from freehold.kernels import Matrix, Norm, Ops, Rope
from freehold.models.common import Config, read_rope
from freehold.models.loader import Loader

_, MISTRAL, SMOLLM3 = MODEL_TYPES = ("llama", "mistral", "smollm3")
COVERS = ("Llama 3 to 3.3, DeepSeek-R1-Distill-Llama, SmolLM2", "Mistral-Nemo", "SmolLM3")  # by model_type
ROUNDED = EXACT = ()  # nothing is rounded unasked; nothing must not be

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
ATTN_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q, K, V, OUT = (f"self_attn.{x}_proj" for x in "qkvo")
GATE, UP, DOWN = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of one model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    max_context: int
    tied: bool
    rope: Rope
    rotated: tuple[bool, ...]  # by layer

    @staticmethod
    def read(config: Config, loader: Loader) -> LlamaConfig:
        """Read and check a config; raises ModelFileError, or UnsupportedError naming the key."""
        kind = config.get("model_type", str)
        hidden, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
        n_layers = config.size("num_hidden_layers", most=1024)
        head_dim = config.size("head_dim", default=max(1, hidden // n_heads))
        factors = loader.optional_vector(ROPE_FACTORS, head_dim // 2)
        config.require("hidden_act", "silu")
        config.require("mlp_bias", False)
        if kind == MISTRAL and "sliding_window" not in config:
            raise UnsupportedError("config key 'sliding_window' is absent, which means 4096; only null is implemented")
        config.require("sliding_window")
        config.get("attention_bias", bool, False)  # biases are used exactly where the checkpoint has them
        read = LlamaConfig(
            vocab_size=config.size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=config.size("intermediate_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=config.size("num_key_value_heads", default=n_heads),
            head_dim=head_dim,
            eps=config.get("rms_norm_eps", float, 1e-6),
            max_context=config.size("max_position_embeddings", default=2048, most=1 << 30),
            tied=config.get("tie_word_embeddings", bool, False),
            rope=read_rope(config, head_dim, factors),
            rotated=_rotated_layers(config, n_layers) if kind == SMOLLM3 else (True,) * n_layers,
        )
        config.finish()
        return read


def _rotated_layers(config: Config, n_layers: int) -> tuple[bool, ...]:
    """By layer, whether SmolLM3 rotates: the key's name says the opposite of what its ones mean."""
    interval = config.size("no_rope_layer_interval", default=4)
    rotated = config.flags("no_rope_layers", default=[(index + 1) % interval != 0 for index in range(n_layers)])
    if len(rotated) < n_layers:
        raise ModelFileError(f"no_rope_layers names {len(rotated)} layers; num_hidden_layers is {n_layers}")
    return tuple(rotated[:n_layers])


@dataclass(frozen=True)
class Layer:
    """One block's weights."""

    attn_norm: Norm
    qkv: tuple[Matrix, Matrix, Matrix]
    qkv_bias: tuple[Any, Any, Any]
    o: Matrix
    o_bias: Any
    mlp_norm: Norm
    gate: Matrix
    up: Matrix
    down: Matrix

    @staticmethod
    def load(loader: Loader, index: int, c: LlamaConfig) -> Layer:
        at = LAYER.format(index)
        sizes = {Q: c.n_heads * c.head_dim, K: c.n_kv_heads * c.head_dim, V: c.n_kv_heads * c.head_dim}
        q, k, v = (loader.matrix(f"{at}{name}.weight", size, c.hidden_size) for name, size in sizes.items())
        q_bias, k_bias, v_bias = (loader.optional_vector(f"{at}{name}.bias", size) for name, size in sizes.items())
        return Layer(
            attn_norm=loader.norm(at + ATTN_NORM, c.hidden_size, c.eps),
            qkv=(q, k, v),
            qkv_bias=(q_bias, k_bias, v_bias),
            o=loader.matrix(f"{at}{OUT}.weight", c.hidden_size, c.n_heads * c.head_dim),
            o_bias=loader.optional_vector(f"{at}{OUT}.bias", c.hidden_size),
            mlp_norm=loader.norm(at + MLP_NORM, c.hidden_size, c.eps),
            gate=loader.matrix(at + GATE, c.intermediate_size, c.hidden_size),
            up=loader.matrix(at + UP, c.intermediate_size, c.hidden_size),
            down=loader.matrix(at + DOWN, c.hidden_size, c.intermediate_size),
        )


def record(config: Config, loader: Loader) -> tuple[Ops, LlamaConfig]:
    """Load the weights and record the forward pass."""
    c = LlamaConfig.read(config, loader)
    kv = KVSpec("full", c.n_kv_heads, c.head_dim, c.head_dim)
    tied = c.tied and HEAD not in loader
    embedding = (loader.matrix if tied else loader.table)(EMBED, c.vocab_size, c.hidden_size)

    ops = Ops()
    x = ops.embed(embedding)
    for index in range(c.n_layers):
        layer = Layer.load(loader, index, c)
        q, k, v = ops.linear(x, layer.qkv, layer.qkv_bias, norm=layer.attn_norm)
        attended = ops.attend(q, k, v, kv, rope=c.rope if c.rotated[index] else None, scale=c.head_dim**-0.5)
        x = ops.linear_add(attended, layer.o, x, layer.o_bias)
        active = ops.gated_linear(x, layer.gate, layer.up, norm=layer.mlp_norm)
        x = ops.linear_add(active, layer.down, x)
    head = embedding if tied else loader.matrix(HEAD, c.vocab_size, c.hidden_size)
    ops.head(x, head, norm=loader.norm(FINAL_NORM, c.hidden_size, c.eps))
    return ops, c
