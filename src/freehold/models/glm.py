"""GLM-4.5, GLM-4.5-Air, GLM-4.6: grouped-query attention rotated in part, then a mixture of experts with a shared one.

    x += W_o attend(rope(q), rope(k), v)              t = rms(x); the first half of each head is rotated
         q, k, v = W t + b                            q and k normalised head by head, where use_qk_norm says so
    x += W_down (silu(W_gate t) * W_up t)             t = rms(x), in the first layers
    x += shared(t) + scale_r sum_e w_e expert_e(t)    in the others: gated MLPs all of them
         w = s_e / sum of the chosen s                s = sigmoid(W_router t), the k best of s + b, see blocks.py
    logits = W_head rms(x)

The layer after the last, which guesses further ahead (MTP), is not used.

Source: the report of GLM-4.5, transformers' modeling_glm4_moe; rotation is of half-split pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.errors import ModelFileError
from freehold.kernels import Ops, Rope
from freehold.models.blocks import ROUTER, Attention, FeedForward, read_sigmoid_gating
from freehold.models.common import Config, read_context, read_rope
from freehold.models.loader import Loader

MODEL_TYPES = ("glm4_moe",)
COVERS = ("GLM-4.5, GLM-4.5-Air, GLM-4.6",)  # by model_type
ROUNDED = ()  # nothing is rounded unasked
EXACT = (ROUTER,)  # decides between close scores

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
MLP_NORM = "post_attention_layernorm.weight"


@dataclass(frozen=True)
class GlmConfig:
    """The shape of one model."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    feed_forward: FeedForward
    n_heads: int
    n_kv_heads: int
    head_dim: int
    biased: bool  # queries, keys and values
    normalised: bool  # queries and keys
    rope: Rope
    eps: float
    max_context: int

    @staticmethod
    def read(config: Config) -> GlmConfig:
        """Read and check a config; raises ModelFileError, or UnsupportedError naming the key."""
        head_dim = config.size("head_dim")
        rotated = head_dim * config.get("partial_rotary_factor", float, 0.5)
        if rotated % 2 or not 2 <= rotated <= head_dim:
            raise ModelFileError(
                f"partial_rotary_factor rotates {rotated} of a head's {head_dim}; expected an even size"
            )
        config.require("hidden_act", "silu")
        config.require("tie_word_embeddings", False)
        config.ignore("num_nextn_predict_layers")  # layers that are not used
        read = GlmConfig(
            vocab_size=config.size("vocab_size"),
            hidden_size=config.size("hidden_size"),
            n_layers=config.size("num_hidden_layers", most=1024),
            feed_forward=FeedForward.read(config, read_sigmoid_gating(config), biased=True),
            n_heads=config.size("num_attention_heads"),
            n_kv_heads=config.size("num_key_value_heads"),
            head_dim=head_dim,
            biased=config.get("attention_bias", bool, False),
            normalised=config.get("use_qk_norm", bool, False),
            rope=read_rope(config, int(rotated), partial=True),
            eps=config.get("rms_norm_eps", float, 1e-5),
            max_context=read_context(config),
        )
        config.finish()
        return read


def record(config: Config, loader: Loader) -> tuple[Ops, GlmConfig]:
    """Load the weights and record the forward pass."""
    c = GlmConfig.read(config)
    ops = Ops()
    x = ops.embed(loader.table(EMBED, c.vocab_size, c.hidden_size))
    for index in range(c.n_layers):
        at = LAYER.format(index)
        x = Attention.load(loader, at, c).record(ops, x, c)
        norm = loader.norm(at + MLP_NORM, c.hidden_size, c.eps)
        x = c.feed_forward.load(loader, index, at, c.hidden_size).record(ops, x, norm)
    head = loader.matrix(HEAD, c.vocab_size, c.hidden_size)
    ops.head(x, head, norm=loader.norm(FINAL_NORM, c.hidden_size, c.eps))
    return ops, c
