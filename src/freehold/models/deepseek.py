"""DeepSeek V2, V3 and R1, Kimi-K2: attention through a latent per token, then a mixture of experts with shared ones.

    x += W_o attend(q, c)                             t = rms(x)
         c, k_pe = W_kva t                            the latent, and the rotated part of every head's key: all KV keeps
         q_nope, q_pe = W_qb rms(W_qa t)              of each head; V2-Lite: W_q t
         k = [U rms(c); rope(k_pe)], v = V rms(c)     U, V: a head's rows of W_kvb; v is narrower than k
         scores = [q_nope; rope(q_pe)] k scale        scale = (size of k)^-1/2 (0.1 mscale_all_dim ln factor + 1)^2
    x += W_down (silu(W_gate t) * W_up t)             t = rms(x), in the first layers
    x += shared(t) + sum_e w_e expert_e(t)            in the others: gated MLPs all of them
         V2: w = scale_r softmax(W_router t)_e        of the k best, in V2 among the groups with the best one each
         V3: w = scale_r s_e / sum of the chosen s    s = sigmoid(W_router t), chosen by s + b, see blocks.py
    logits = W_head rms(x)

Since q_nope (U c) = (U^T q_nope) c, latents can stand for keys: which of the two is computed is the kernels' choice.
Layers after the last, which guess further ahead (MTP), are not used.

Source: the reports of DeepSeek-V2 and V3, modeling_deepseek.py beside their weights, transformers' modeling_deepseek_v2
and _v3; rotation is of neighbouring pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.errors import ModelFileError
from freehold.formats import QTensor
from freehold.kernels import Gating, LatentHeads, Matrix, Norm, Ops, Rope, Value
from freehold.models.blocks import ROUTER, FeedForward, read_sigmoid_gating
from freehold.models.common import Config, read_context, read_rope
from freehold.models.loader import Loader

DEEPSEEK_V2, _, _ = MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "kimi_k2")
COVERS = ("DeepSeek-V2, V2-Lite", "DeepSeek-V3, R1, V3.1", "Kimi-K2")  # by model_type
ROUNDED = ()  # nothing is rounded unasked

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
ATTN_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q, Q_A, Q_B, KV_A, OUT = (
    f"self_attn.{x}.weight" for x in ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
)
Q_NORM, LATENT_NORM = "self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight"
KV_B = "self_attn.kv_b_proj.weight"  # of each head U, then V
K_B, V_B = "self_attn.k_b_proj.weight", "self_attn.v_b_proj.weight"  # U^T and V of all heads, as GGUF has them
EXACT = (ROUTER, KV_A, KV_B, K_B, V_B)  # what decides between close scores, and what every key and value goes through

LATENT_EPS = 1e-6  # of the norms inside attention, whatever rms_norm_eps says


@dataclass(frozen=True)
class DeepseekConfig:
    """The shape of one model."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    feed_forward: FeedForward
    n_heads: int
    q_rank: int  # 0: queries are made in one step
    latent_size: int
    k_dim: int  # of a head, without the rotated part
    rotated_dim: int
    v_dim: int
    rope: Rope
    scale: float
    eps: float
    max_context: int

    @staticmethod
    def read(config: Config) -> DeepseekConfig:
        """Read and check a config; raises ModelFileError, or UnsupportedError naming the key."""
        k_dim, rotated_dim = config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
        if rotated_dim % 2:
            raise ModelFileError(f"qk_rope_head_dim is {rotated_dim}; expected an even size, for pairs are rotated")
        config.require("hidden_act", "silu")
        config.require("moe_layer_freq", 1)
        config.require("qk_head_dim", k_dim + rotated_dim)
        config.require("tie_word_embeddings", False)
        for key in ("head_dim", "num_key_value_heads"):
            config.ignore(key)  # transformers' help for code that knows only keys and values
        for key in ("aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers"):
            config.ignore(key)  # of training, of other machines, of layers that are not used
        v2 = config.get("model_type", str) == DEEPSEEK_V2
        gating = _read_v2_gating(config) if v2 else _read_v3_gating(config)
        rope = read_rope(config, rotated_dim, interleaved=True)
        read = DeepseekConfig(
            vocab_size=config.size("vocab_size"),
            hidden_size=config.size("hidden_size"),
            n_layers=config.size("num_hidden_layers", most=1024),
            feed_forward=FeedForward.read(config, gating, biased=not v2),
            n_heads=config.size("num_attention_heads"),
            q_rank=config.get("q_lora_rank", int, 0) and config.size("q_lora_rank"),
            latent_size=config.size("kv_lora_rank"),
            k_dim=k_dim,
            rotated_dim=rotated_dim,
            v_dim=config.size("v_head_dim"),
            rope=rope,
            scale=(k_dim + rotated_dim) ** -0.5 * _growth(config) ** 2,
            eps=config.get("rms_norm_eps", float, 1e-6),
            max_context=read_context(config),
        )
        config.finish()
        return read


def _read_v2_gating(config: Config) -> Gating:
    """V2's router: a softmax over all experts; the groups count in the larger model only."""
    config.require("scoring_func", "softmax")
    config.require("topk_method", "greedy", "group_limited_greedy")
    config.require("norm_topk_prob", False)  # with it the publisher's code leaves out routed_scaling_factor
    grouped = config.get("topk_method", str, "greedy") == "group_limited_greedy"
    scale, groups = config.get("routed_scaling_factor", float), ("n_group", "topk_group")
    if not grouped:
        for key in groups:
            config.ignore(key)
        return Gating(normalised=False, scale=scale)
    n_groups, n_kept = (config.size(key, most=4096) for key in groups)
    return Gating(normalised=False, scale=scale, n_groups=n_groups, n_kept_groups=n_kept)


def _read_v3_gating(config: Config) -> Gating:
    config.require("scoring_func", "sigmoid")
    config.require("topk_method", "noaux_tc")
    return read_sigmoid_gating(config)


def _growth(config: Config) -> float:
    """What YaRN makes of queries' and keys' length, if the config asks for it. read_rope has checked the values."""
    scaling = config.section("rope_parameters", "rope_scaling")
    all_dim = scaling.get("mscale_all_dim", float, 0.0) if scaling else 0.0
    return 0.1 * all_dim * math.log(scaling.get("factor", float)) + 1 if scaling and all_dim else 1.0


@dataclass(frozen=True)
class Attention:
    """One layer's attention."""

    norm: Norm
    q_a: Matrix | None  # with q_norm: into the low rank
    q_norm: Norm | None
    q: Matrix  # of the hidden state, or of the low rank
    latent: Matrix
    heads: LatentHeads
    out: Matrix

    @staticmethod
    def load(loader: Loader, at: str, c: DeepseekConfig) -> Attention:
        n_q, hidden, rank = c.n_heads * (c.k_dim + c.rotated_dim), c.hidden_size, c.q_rank
        return Attention(
            norm=loader.norm(at + ATTN_NORM, hidden, c.eps),
            q_a=loader.matrix(at + Q_A, rank, hidden) if rank else None,
            q_norm=loader.norm(at + Q_NORM, rank, LATENT_EPS) if rank else None,
            q=loader.matrix(at + Q_B, n_q, rank) if rank else loader.matrix(at + Q, n_q, hidden),
            latent=loader.matrix(at + KV_A, c.latent_size + c.rotated_dim, hidden),
            heads=_load_heads(loader, at, c),
            out=loader.matrix(at + OUT, hidden, c.n_heads * c.v_dim),
        )

    def record(self, ops: Ops, x: Value, c: DeepseekConfig) -> Value:
        first, latent = ops.linear(x, [self.q if self.q_a is None else self.q_a, self.latent], norm=self.norm)
        q = first if self.q_a is None else ops.linear(first, [self.q], norm=self.q_norm)[0]
        attended = ops.attend_latent(q, latent, self.heads, rope=c.rope, scale=c.scale)
        return ops.linear_add(attended, self.out, x)


def _load_heads(loader: Loader, at: str, c: DeepseekConfig) -> LatentHeads:
    """A matrix per head and purpose, cut out of one tensor, or of two."""
    n, k, v, latent = c.n_heads, c.k_dim, c.v_dim, c.latent_size
    from_keys = {"keys": (n, k, latent), "queries": (n, latent, k)}
    from_values = {"values": (n, v, latent)}

    def cut_both(stored: QTensor) -> dict[str, list[QTensor]]:
        starts = range(0, n * (k + v), k + v)
        keys = [stored.rows(start, start + k) for start in starts]
        values = [stored.rows(start + k, start + k + v) for start in starts]
        return {"keys": keys, "queries": [key.transposed() for key in keys], "values": values}

    def cut_queries(stored: QTensor) -> dict[str, list[QTensor]]:
        queries = [stored.expert(head) for head in range(n)]
        return {"keys": [query.transposed() for query in queries], "queries": queries}

    def cut_values(stored: QTensor) -> dict[str, list[QTensor]]:
        return {"values": [stored.expert(head) for head in range(n)]}

    norm = loader.norm(at + LATENT_NORM, latent, LATENT_EPS)
    if at + K_B in loader:
        heads = loader.parts(at + K_B, (n, latent, k), from_keys, cut_queries)
        heads |= loader.parts(at + V_B, (n, v, latent), from_values, cut_values)
    else:
        heads = loader.parts(at + KV_B, (n * (k + v), latent), from_keys | from_values, cut_both)
    return LatentHeads(norm, **heads)


def record(config: Config, loader: Loader) -> tuple[Ops, DeepseekConfig]:
    """Load the weights and record the forward pass."""
    c = DeepseekConfig.read(config)
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
