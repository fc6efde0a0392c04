"""gpt-oss: attention with sinks, on every other layer through a sliding window, and a mixture of clamped gated experts.

    x += W_o attend(rope(W_q t), rope(W_k t), W_v t)      t = rms(x); each head's sink takes part in its softmax
    s = W_router t                                        t = rms(x); the top k experts, softmax over their k scores
    x += sum_e softmax(s)_e (W_down,e act(W_gate,e t, W_up,e t) + b_e)
    act(g, u) = g sigmoid(alpha g) (u + 1)                g at most `limit`, u within +-limit
    logits = W_head rms(x)

Every product has a bias. Source: OpenAI's reference implementation (gpt_oss/torch/model.py) and transformers'
modeling_gpt_oss; rotation is of half-split pairs, YaRN's concentration scales both queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.core import Float32Array, KVSpec
from freehold.errors import ModelFileError
from freehold.kernels import Clamp, Matrix, Norm, Ops, Rope
from freehold.models.common import Config, read_rope
from freehold.models.loader import Loader

MODEL_TYPES = ("gpt_oss",)
COVERS = ("gpt-oss-20b, gpt-oss-120b",)  # by model_type

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}."
ATTN_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
Q, K, V, OUT = (f"self_attn.{x}_proj" for x in "qkvo")
SINKS, ROUTER = "self_attn.sinks", "mlp.router"
GATE, UP, DOWN = (f"mlp.experts.{x}_proj" for x in ("gate", "up", "down"))

ROUNDED = (HEAD, *(f"{name}.weight" for name in (Q, K, V, OUT)))
"""Published in bfloat16, read whole for every token, and packed as Q8_0 unless the caller wants another form. Experts
keep their MXFP4 exactly."""

EXACT = (f"{ROUTER}.weight",)
"""Decides between close scores, and is never rounded."""

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GptOssConfig:
    """The shape of one model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int
    sliding: tuple[bool, ...]  # by layer
    n_experts: int
    n_chosen: int
    clamp: Clamp
    eps: float
    max_context: int
    rope: Rope

    @staticmethod
    def read(config: Config) -> GptOssConfig:
        """Read and check a config; raises ModelFileError, or UnsupportedError naming the key."""
        n_layers = config.size("num_hidden_layers", most=1024)
        head_dim = config.size("head_dim", default=64)
        kinds = config.choices("layer_types", (SLIDING, FULL), default=[SLIDING, FULL] * n_layers)
        n_chosen = config.size("num_experts_per_tok", default=config.size("experts_per_token", default=4))
        config.require("hidden_act", "silu")
        config.require("attention_bias", True)
        config.require("tie_word_embeddings", False)
        for key in ("router_aux_loss_coef", "output_router_logits", "initial_context_length"):
            config.ignore(key)
        read = GptOssConfig(
            vocab_size=config.size("vocab_size"),
            hidden_size=config.size("hidden_size"),
            intermediate_size=config.size("intermediate_size"),
            n_layers=n_layers,
            n_heads=config.size("num_attention_heads"),
            n_kv_heads=config.size("num_key_value_heads"),
            head_dim=head_dim,
            window=config.size("sliding_window"),
            sliding=tuple(kind == SLIDING for kind in kinds[:n_layers]),
            n_experts=config.size("num_local_experts", most=4096),
            n_chosen=n_chosen,
            clamp=Clamp(config.get("swiglu_alpha", float, 1.702), config.get("swiglu_limit", float, 7.0)),
            eps=config.get("rms_norm_eps", float, 1e-5),
            max_context=config.size("max_position_embeddings", most=1 << 30),
            rope=read_rope(config, head_dim),
        )
        config.finish()
        if len(read.sliding) < n_layers:
            raise ModelFileError(f"layer_types names {len(read.sliding)} layers; num_hidden_layers is {n_layers}")
        if read.n_chosen > read.n_experts:
            raise ModelFileError(f"num_experts_per_tok is {read.n_chosen}; the model has {read.n_experts} experts")
        return read


@dataclass(frozen=True)
class Layer:
    """One block's weights; of the experts one matrix each, their biases [n_experts, n_rows]."""

    attn_norm: Norm
    qkv: tuple[Matrix, Matrix, Matrix]
    qkv_bias: tuple[Float32Array, Float32Array, Float32Array]
    sinks: Float32Array
    o: Matrix
    o_bias: Float32Array
    mlp_norm: Norm
    router: Matrix
    router_bias: Float32Array
    gates: tuple[Matrix, ...]
    ups: tuple[Matrix, ...]
    downs: tuple[Matrix, ...]
    gate_bias: Float32Array
    up_bias: Float32Array
    down_bias: Float32Array

    @staticmethod
    def load(loader: Loader, index: int, c: GptOssConfig) -> Layer:
        at = LAYER.format(index)
        n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        hidden, inner, n = c.hidden_size, c.intermediate_size, c.n_experts
        return Layer(
            attn_norm=loader.norm(at + ATTN_NORM, hidden, c.eps),
            qkv=(
                loader.matrix(f"{at}{Q}.weight", n_q, hidden),
                loader.matrix(f"{at}{K}.weight", n_kv, hidden),
                loader.matrix(f"{at}{V}.weight", n_kv, hidden),
            ),
            qkv_bias=(
                loader.vector(f"{at}{Q}.bias", n_q),
                loader.vector(f"{at}{K}.bias", n_kv),
                loader.vector(f"{at}{V}.bias", n_kv),
            ),
            sinks=loader.vector(at + SINKS, c.n_heads),
            o=loader.matrix(f"{at}{OUT}.weight", hidden, n_q),
            o_bias=loader.vector(f"{at}{OUT}.bias", hidden),
            mlp_norm=loader.norm(at + MLP_NORM, hidden, c.eps),
            router=loader.matrix(f"{at}{ROUTER}.weight", n, hidden),
            router_bias=loader.vector(f"{at}{ROUTER}.bias", n),
            gates=loader.experts(f"{at}{GATE}.weight", n, inner, hidden),
            ups=loader.experts(f"{at}{UP}.weight", n, inner, hidden),
            downs=loader.experts(f"{at}{DOWN}.weight", n, hidden, inner),
            gate_bias=loader.vector(f"{at}{GATE}.bias", n, inner),
            up_bias=loader.vector(f"{at}{UP}.bias", n, inner),
            down_bias=loader.vector(f"{at}{DOWN}.bias", n, hidden),
        )


def record(config: Config, loader: Loader) -> tuple[Ops, GptOssConfig]:
    """Load the weights and record the forward pass."""
    c = GptOssConfig.read(config)
    full = KVSpec("full", c.n_kv_heads, c.head_dim, c.head_dim)
    window = KVSpec("window", c.n_kv_heads, c.head_dim, c.head_dim, c.window)

    ops = Ops()
    x = ops.embed(loader.table(EMBED, c.vocab_size, c.hidden_size))
    for index in range(c.n_layers):
        layer = Layer.load(loader, index, c)
        kv = window if c.sliding[index] else full
        q, k, v = ops.linear(x, layer.qkv, layer.qkv_bias, norm=layer.attn_norm)
        attended = ops.attend(q, k, v, kv, rope=c.rope, scale=c.head_dim**-0.5, sinks=layer.sinks)
        x = ops.linear_add(attended, layer.o, x, layer.o_bias)
        (scores,) = ops.linear(x, [layer.router], [layer.router_bias], norm=layer.mlp_norm)
        routing = ops.route(scores, c.n_chosen)
        active = ops.experts(
            x, routing, layer.gates, layer.ups, norm=layer.mlp_norm,
            gate_bias=layer.gate_bias, up_bias=layer.up_bias, clamp=c.clamp,
        )  # fmt: skip
        x = ops.combine(active, routing, layer.downs, x, layer.down_bias)
    head = loader.matrix(HEAD, c.vocab_size, c.hidden_size)
    ops.head(x, head, norm=loader.norm(FINAL_NORM, c.hidden_size, c.eps))
    return ops, c
