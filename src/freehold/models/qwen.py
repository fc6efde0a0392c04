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

from freehold.kernels import Gating, Ops, Rope
from freehold.models.blocks import ROUTER, Attention, FeedForward, MixtureShape
from freehold.models.common import Config, read_context, read_rope
from freehold.models.loader import Loader

QWEN2, _, QWEN3_MOE = MODEL_TYPES = ("qwen2", "qwen3", "qwen3_moe")
COVERS = ("Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen", "Qwen3", "Qwen3-MoE")  # by model_type
ROUNDED = ()  # nothing is rounded unasked
EXACT = (ROUTER,)  # decides between close scores

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
MLP_NORM = "post_attention_layernorm.weight"


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
    biased: bool  # queries, keys and values: Qwen2
    eps: float
    max_context: int
    tied: bool
    rope: Rope

    @property
    def normalised(self) -> bool:
        """Queries and keys."""
        return not self.biased

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
