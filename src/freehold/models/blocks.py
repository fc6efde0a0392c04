"""What several families have in common: grouped-query attention, a gated MLP, a mixture of such experts.

    attention(t) = W_o attend(rope(q), rope(k), v)   q, k, v = W t, with biases or not; q, k normalised or not
    mlp(t) = W_down (silu(W_gate t) * W_up t)
    mixture(t) = sum_e w_e mlp_e(t) + shared(t)      the experts e and weights w_e as the router's scores decide

Owns the tensors' names, which all that use it share, a mixture's shape, and the router that DeepSeek-V3 introduced.
Norms and most of a config's words belong to the families.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from freehold.core import Float32Array, KVSpec
from freehold.errors import ModelFileError
from freehold.kernels import Gating, Matrix, Norm, Ops, Rope, Value
from freehold.models.common import Config
from freehold.models.loader import Loader

ATTN_NORM = "input_layernorm.weight"
Q, K, V, OUT = (f"self_attn.{x}_proj" for x in "qkvo")
Q_NORM, K_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"
MLP, SHARED = "mlp.", "mlp.shared_experts."
GATE, UP, DOWN = (f"{x}_proj.weight" for x in ("gate", "up", "down"))
ROUTER, CHOICE_BIAS = "mlp.gate.weight", "mlp.gate.e_score_correction_bias"
GATES, UPS, DOWNS = (f"mlp.experts.{name}" for name in (GATE, UP, DOWN))


class AttentionShape(Protocol):
    """What `Attention` reads of a family's config."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rope(self) -> Rope: ...
    @property
    def eps(self) -> float: ...
    @property
    def biased(self) -> bool:
        """Queries, keys and values; not the output."""
        ...

    @property
    def normalised(self) -> bool:
        """Queries and keys, each head by itself, before they are rotated."""
        ...


@dataclass(frozen=True)
class Attention:
    """One layer's grouped-query attention, whose heads see everything before them."""

    norm: Norm
    qkv: tuple[Matrix, ...]
    biases: tuple[Float32Array, ...] | None
    q_norm: Norm | None
    k_norm: Norm | None
    out: Matrix

    @staticmethod
    def load(loader: Loader, at: str, c: AttentionShape) -> Attention:
        sizes = {Q: c.n_heads * c.head_dim, K: c.n_kv_heads * c.head_dim, V: c.n_kv_heads * c.head_dim}
        return Attention(
            norm=loader.norm(at + ATTN_NORM, c.hidden_size, c.eps),
            qkv=tuple(loader.matrix(f"{at}{name}.weight", size, c.hidden_size) for name, size in sizes.items()),
            biases=tuple(loader.vector(f"{at}{x}.bias", size) for x, size in sizes.items()) if c.biased else None,
            q_norm=loader.norm(at + Q_NORM, c.head_dim, c.eps) if c.normalised else None,
            k_norm=loader.norm(at + K_NORM, c.head_dim, c.eps) if c.normalised else None,
            out=loader.matrix(f"{at}{OUT}.weight", c.hidden_size, c.n_heads * c.head_dim),
        )

    def record(self, ops: Ops, x: Value, c: AttentionShape) -> Value:
        kv = KVSpec("full", c.n_kv_heads, c.head_dim, c.head_dim)
        q, k, v = ops.linear(x, self.qkv, self.biases, norm=self.norm)
        scale = c.head_dim**-0.5
        attended = ops.attend(q, k, v, kv, rope=c.rope, scale=scale, q_norm=self.q_norm, k_norm=self.k_norm)
        return ops.linear_add(attended, self.out, x)


@dataclass(frozen=True)
class Mlp:
    """A gated MLP."""

    gate: Matrix
    up: Matrix
    down: Matrix

    @staticmethod
    def load(loader: Loader, at: str, hidden: int, inner: int) -> Mlp:
        """`at`: the layer, and MLP or SHARED."""
        return Mlp(
            gate=loader.matrix(at + GATE, inner, hidden),
            up=loader.matrix(at + UP, inner, hidden),
            down=loader.matrix(at + DOWN, hidden, inner),
        )

    def record(self, ops: Ops, x: Value, norm: Norm) -> Value:
        return ops.linear_add(ops.gated_linear(x, self.gate, self.up, norm=norm), self.down, x)


@dataclass(frozen=True)
class MixtureShape:
    """The sizes of a mixture, and how its router chooses."""

    n_experts: int
    n_chosen: int
    inner_size: int  # of an expert
    gating: Gating
    biased: bool = False  # the checkpoint has a bias that takes part in the choice
    shared_size: int = 0  # inner size of the shared experts, which are one MLP; 0: there are none

    def __post_init__(self) -> None:
        n_groups, n_kept = self.gating.n_groups, self.gating.n_kept_groups
        size = self.n_experts // n_groups
        if size * n_groups != self.n_experts or n_kept > n_groups or (n_groups > 1 and size < self.gating.group_best):
            raise ModelFileError(f"{self.n_experts} experts cannot be {n_groups} groups of which {n_kept} are kept")
        if self.n_chosen > size * n_kept:
            kept = f" in the {n_kept} groups that are kept" if n_groups > 1 else ""
            raise ModelFileError(f"num_experts_per_tok is {self.n_chosen}; the model has {size * n_kept} experts{kept}")


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts, of which there is a matrix each."""

    router: Matrix
    gating: Gating
    n_chosen: int
    gates: tuple[Matrix, ...]
    ups: tuple[Matrix, ...]
    downs: tuple[Matrix, ...]
    shared: Mlp | None  # works on every token

    @staticmethod
    def load(loader: Loader, at: str, hidden: int, shape: MixtureShape) -> Mixture:
        n, inner, shared = shape.n_experts, shape.inner_size, shape.shared_size
        bias = loader.vector(at + CHOICE_BIAS, n) if shape.biased else None
        return Mixture(
            router=loader.matrix(at + ROUTER, n, hidden),
            gating=replace(shape.gating, bias=bias),
            n_chosen=shape.n_chosen,
            gates=loader.experts(at + GATES, n, inner, hidden),
            ups=loader.experts(at + UPS, n, inner, hidden),
            downs=loader.experts(at + DOWNS, n, hidden, inner),
            shared=Mlp.load(loader, at + SHARED, hidden, shared) if shared else None,
        )

    def record(self, ops: Ops, x: Value, norm: Norm) -> Value:
        (scores,) = ops.linear(x, [self.router], norm=norm)
        routing = ops.route(scores, self.n_chosen, self.gating)
        active = ops.experts(x, routing, self.gates, self.ups, norm=norm)
        if self.shared is None:
            return ops.combine(active, routing, self.downs, x)
        shared = ops.gated_linear(x, self.shared.gate, self.shared.up, norm=norm)  # before x is written over
        return ops.linear_add(shared, self.shared.down, ops.combine(active, routing, self.downs, x))


@dataclass(frozen=True)
class FeedForward:
    """What follows attention, layer by layer: the first `n_dense` have an MLP, the others a mixture."""

    n_dense: int
    inner_size: int  # of the MLP
    mixture: MixtureShape | None  # None: every layer has an MLP

    @staticmethod
    def read(config: Config, gating: Gating, *, biased: bool) -> FeedForward:
        """From a config in DeepSeek's words, which GLM and Kimi use too."""
        n_dense, n_layers = config.get("first_k_dense_replace", int), config.size("num_hidden_layers")
        if not 0 <= n_dense <= n_layers:
            raise ModelFileError(f"first_k_dense_replace is {n_dense}; the model has {n_layers} layers")
        inner, n_shared = config.size("moe_intermediate_size"), config.get("n_shared_experts", int, 0)
        mixture = MixtureShape(
            n_experts=config.size("n_routed_experts", most=4096),
            n_chosen=config.size("num_experts_per_tok", most=4096),
            inner_size=inner,
            gating=gating,
            biased=biased,
            shared_size=config.size("n_shared_experts", most=64) * inner if n_shared else 0,
        )
        return FeedForward(n_dense, config.size("intermediate_size"), mixture)

    def load(self, loader: Loader, index: int, at: str, hidden: int) -> Mlp | Mixture:
        """Layer number `index`, whose tensors' names begin with `at`."""
        if self.mixture is None or index < self.n_dense:
            return Mlp.load(loader, at + MLP, hidden, self.inner_size)
        return Mixture.load(loader, at, hidden, self.mixture)


def read_sigmoid_gating(config: Config) -> Gating:
    """DeepSeek-V3's router: sigmoids, chosen from the groups whose two best sum highest. Source: its report, 2.1.2."""
    return Gating(
        score="sigmoid",
        normalised=config.get("norm_topk_prob", bool),
        scale=config.get("routed_scaling_factor", float),
        n_groups=config.size("n_group", most=4096),
        n_kept_groups=config.size("topk_group", most=4096),
        group_best=2,
    )
