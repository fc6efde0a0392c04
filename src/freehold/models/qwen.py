"""Qwen2, Qwen3, Qwen3-MoE: pre-norm blocks of grouped-query attention and a gated MLP, or a mixture of gated experts.

    x += W_o attend(rope(q), rope(k), v)              t = rms(x)
         q, k, v = W t + b                            Qwen2: with biases
         q, k = rms(W t) of each head, v = W t        Qwen3: without, queries and keys normalised
    x += W_down (silu(W_gate t) * W_up t)             t = rms(x)
    x += sum_e softmax(s)_e W_down,e (silu(W_gate,e t) * W_up,e t)
         s = W_router t                               Qwen3-MoE, in place of the MLP: the top k experts
    logits = W_head rms(x)

Qwen2.5, QwQ and what DeepSeek-R1 was distilled into are Qwen2 in form. Published MoE models divide the softmax over all
experts by its sum over the chosen ones, as norm_topk_prob says, which makes it the softmax over the chosen.

Source: the technical reports of Qwen2 and Qwen3, transformers' modeling_qwen2, modeling_qwen3 and modeling_qwen3_moe;
rotation is of half-split pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.core import Float32Array, KVSpec
from freehold.kernels import Gating, Matrix, Norm, Ops, Rope, Value
from freehold.models.blocks import ROUTER, FeedForward, MixtureShape
from freehold.models.common import Config, read_context, read_rope
from freehold.models.loader import Loader

QWEN2, _, QWEN3_MOE = MODEL_TYPES = ("qwen2", "qwen3", "qwen3_moe")
COVERS = ("Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen", "Qwen3", "Qwen3-MoE")  # by model_type
ROUNDED = ()  # nothing is rounded unasked
EXACT = (ROUTER,)  # decides between close scores

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
ATTN_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q, K, V, OUT = (f"self_attn.{x}_proj" for x in "qkvo")
Q_NORM, K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"


@dataclass(frozen=True)
class QwenConfig:
    """The shape of one model."""

    vocab_size: int
    hidden_size: int
    feed_forward: FeedForward
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    biased: bool  # Qwen2; else queries and keys are normalised
    eps: float
    max_context: int
    tied: bool
    rope: Rope

    @staticmethod
    def read(config: Config) -> QwenConfig:
        """Read and check a config; raises ModelFileError, or UnsupportedError naming the key."""
        kind = config.get("model_type", str)
        hidden, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
        head_dim = config.size("head_dim", default=max(1, hidden // n_heads) if kind == QWEN2 else None)
        config.require("hidden_act", "silu")
        config.require("attention_bias", kind == QWEN2)
        config.require("use_sliding_window", False)
        config.ignore("sliding_window")  # void without the key above
        config.choices("layer_types", ("full_attention",), default=[])
        n_layers = config.size("num_hidden_layers", most=1024)
        read = QwenConfig(
            vocab_size=config.size("vocab_size"),
            hidden_size=hidden,
            feed_forward=_read_mixture(config) if kind == QWEN3_MOE else _read_mlp(config, n_layers),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=config.size("num_key_value_heads"),
            head_dim=head_dim,
            biased=kind == QWEN2,
            eps=config.get("rms_norm_eps", float, 1e-6),
            max_context=read_context(config),
            tied=config.get("tie_word_embeddings", bool, False),
            rope=read_rope(config, head_dim),
        )
        config.finish()
        return read


def _read_mlp(config: Config, n_layers: int) -> FeedForward:
    return FeedForward(n_layers, config.size("intermediate_size"), mixture=None)


def _read_mixture(config: Config) -> FeedForward:
    """Every layer has experts."""
    config.require("decoder_sparse_step", 1)
    config.require("mlp_only_layers", [])
    for key in ("intermediate_size", "router_aux_loss_coef", "output_router_logits"):
        config.ignore(key)
    mixture = MixtureShape(
        n_experts=config.size("num_experts", default=config.get("num_local_experts", int, 0) or None, most=4096),
        n_chosen=config.size("num_experts_per_tok", most=4096),
        inner_size=config.size("moe_intermediate_size"),
        gating=Gating(normalised=config.get("norm_topk_prob", bool, False)),
    )
    return FeedForward(0, 0, mixture)


@dataclass(frozen=True)
class Attention:
    """One layer's attention; of biases and norms of the heads a model has one or the other."""

    norm: Norm
    qkv: tuple[Matrix, ...]
    biases: tuple[Float32Array, ...] | None
    q_norm: Norm | None
    k_norm: Norm | None
    out: Matrix

    @staticmethod
    def load(loader: Loader, at: str, c: QwenConfig) -> Attention:
        sizes = {Q: c.n_heads * c.head_dim, K: c.n_kv_heads * c.head_dim, V: c.n_kv_heads * c.head_dim}
        return Attention(
            norm=loader.norm(at + ATTN_NORM, c.hidden_size, c.eps),
            qkv=tuple(loader.matrix(f"{at}{name}.weight", size, c.hidden_size) for name, size in sizes.items()),
            biases=tuple(loader.vector(f"{at}{x}.bias", size) for x, size in sizes.items()) if c.biased else None,
            q_norm=None if c.biased else loader.norm(at + Q_NORM, c.head_dim, c.eps),
            k_norm=None if c.biased else loader.norm(at + K_NORM, c.head_dim, c.eps),
            out=loader.matrix(f"{at}{OUT}.weight", c.hidden_size, c.n_heads * c.head_dim),
        )

    def record(self, ops: Ops, x: Value, c: QwenConfig) -> Value:
        kv = KVSpec("full", c.n_kv_heads, c.head_dim, c.head_dim)
        q, k, v = ops.linear(x, self.qkv, self.biases, norm=self.norm)
        scale = c.head_dim**-0.5
        attended = ops.attend(q, k, v, kv, rope=c.rope, scale=scale, q_norm=self.q_norm, k_norm=self.k_norm)
        return ops.linear_add(attended, self.out, x)


def record(config: Config, loader: Loader) -> tuple[Ops, QwenConfig]:
    """Load the weights and record the forward pass."""
    c = QwenConfig.read(config)
    tied = c.tied and HEAD not in loader
    embedding = (loader.matrix if tied else loader.table)(EMBED, c.vocab_size, c.hidden_size)

    ops = Ops()
    x = ops.embed(embedding)
    for index in range(c.n_layers):
        at = LAYER.format(index)
        x = Attention.load(loader, at, c).record(ops, x, c)
        norm = loader.norm(at + MLP_NORM, c.hidden_size, c.eps)
        x = c.feed_forward.load(loader, index, at, c.hidden_size).record(ops, x, norm)
    head = embedding if tied else loader.matrix(HEAD, c.vocab_size, c.hidden_size)
    ops.head(x, head, norm=loader.norm(FINAL_NORM, c.hidden_size, c.eps))
    return ops, c
