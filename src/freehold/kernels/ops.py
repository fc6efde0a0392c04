"""The operations that models are written in, recorded once as a list and run for every batch.

A model file calls an `Ops` like a small tensor library; each call appends one record and returns a handle of its
result. A backend then runs the list: native.py in C++, reference.py in numpy, which is the oracle for the other.
Operations are fused the way the hardware wants them (a norm belongs to the product that reads it, a residual to the
product that writes it), and there are only as many as models need. Knows nothing of model families and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from freehold.core import Float32Array, KVSpec
from freehold.errors import ModelFileError

Matrix = Any
"""A weight [n_rows, n_cols] in a backend's own form, made by its `matrix` method."""


def damaged(label: str, fmt: str) -> ModelFileError:
    """What a backend raises for the tensor named `label`: an MXFP4 scale of 255, or F8_E4M3 with NaN in it."""
    what = "an MXFP4 scale of 255, which stands" if fmt == "MXFP4" else f"{fmt} numbers or scales that stand"
    return ModelFileError(f"{label} has {what} for no number; the file is damaged, so fetch it again")


def damaged_number(label: str) -> ModelFileError:
    """What a backend raises for the tensor named `label` if it cannot be rounded."""
    return ModelFileError(
        f"{label} holds a number that cannot be rounded, because it is not finite or too large; if the file is "
        "damaged, fetch it again, else load it as published, with --weights native"
    )


@dataclass(frozen=True)
class Value:
    """A result [n_tokens, width] float32 of some operation."""

    id: int
    width: int


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight."""

    weight: Float32Array  # [width]
    eps: float


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary embedding of pairs (i, i + dim / 2): angle = position * inverse_frequency[i], cos and sin * `scale`.

    dim may be less than a head's size: what follows in the head stays as it is. interleaved: of pairs (2 i, 2 i + 1)
    instead, which a backend may put into the other order, as long as it does so to queries and keys alike.
    """

    inverse_frequencies: npt.NDArray[np.float64]  # [dim / 2]
    scale: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class Embed:
    table: Matrix
    out: Value


@dataclass(frozen=True)
class Linear:
    x: Value
    norm: Norm | None
    weights: tuple[Matrix, ...]
    biases: tuple[Float32Array | None, ...]
    outs: tuple[Value, ...]
    add: bool  # add to the single output, which already holds a residual


@dataclass(frozen=True)
class GatedLinear:
    x: Value
    norm: Norm | None
    gate: Matrix
    up: Matrix
    out: Value


@dataclass(frozen=True)
class Attend:
    q: Value
    k: Value
    v: Value
    out: Value
    layer: int
    n_heads: int
    kv: KVSpec
    rope: Rope | None
    scale: float
    sinks: Float32Array | None  # [n_heads]
    q_norm: Norm | None  # of each head by itself, before the rotation
    k_norm: Norm | None


@dataclass(frozen=True)
class LatentHeads:
    """What multi-head latent attention makes of a token's latent, a matrix per head for each purpose.

    `keys` and `values` give the head's key (its part without position) and value; `queries`, the transposed `keys`,
    give the query that is compared with latents themselves. Source: DeepSeek-V2's report, section 2.1.
    """

    norm: Norm  # of the latent
    keys: tuple[Matrix, ...]  # [n_heads] of [k_dim, latent]
    queries: tuple[Matrix, ...]  # [n_heads] of [latent, k_dim]
    values: tuple[Matrix, ...]  # [n_heads] of [v_dim, latent]

    @property
    def k_dim(self) -> int:
        """A key's size without its rotated part."""
        return int(self.keys[0].shape[0])

    @property
    def v_dim(self) -> int:
        return int(self.values[0].shape[0])


@dataclass(frozen=True)
class AttendLatent:
    q: Value  # per head: k_dim numbers, then those to be rotated
    latent: Value  # the latent, then the key's rotated part, which all heads share
    out: Value  # v_dim per head
    layer: int
    heads: LatentHeads
    kv: KVSpec
    rope: Rope
    scale: float


@dataclass(frozen=True)
class Clamp:
    """A gated activation with bounds, as gpt-oss has it: g * sigmoid(alpha * g) * (u + 1), g <= limit, |u| <= limit."""

    alpha: float
    limit: float


@dataclass(frozen=True, eq=False)
class Gating:
    """How experts are chosen from their scores, and how much each of them counts.

    The scores' softmax over all experts, or the sigmoid of each, plus a `bias` that only matters for the choice. With
    groups of neighbouring experts, only those of the best `n_kept_groups` can be chosen, by the sum of each group's
    `group_best` best. The chosen ones' weights are those before the bias, divided by their sum if `normalised`, times
    `scale`. As it stands: the softmax over the chosen.
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    normalised: bool = True
    scale: float = 1.0
    bias: Float32Array | None = field(default=None, repr=False)  # [n_experts]
    n_groups: int = 1
    n_kept_groups: int = 1
    group_best: int = 1


@dataclass(frozen=True)
class Routing:
    """Which k of n_experts each token goes to, and their weights."""

    id: int
    n_experts: int
    k: int


@dataclass(frozen=True)
class Route:
    scores: Value
    gating: Gating
    out: Routing


@dataclass(frozen=True)
class Experts:
    x: Value
    norm: Norm | None
    routing: Routing
    gates: tuple[Matrix, ...]
    ups: tuple[Matrix, ...]
    gate_bias: Float32Array | None  # [n_experts, n_rows]
    up_bias: Float32Array | None
    clamp: Clamp | None  # None: silu(g) * u
    out: Value  # k rows per token, side by side


@dataclass(frozen=True)
class Combine:
    x: Value
    routing: Routing
    weights: tuple[Matrix, ...]
    bias: Float32Array | None  # [n_experts, n_rows]
    out: Value  # a residual that is added to


@dataclass(frozen=True)
class Head:
    x: Value
    norm: Norm | None
    weight: Matrix


Op = Embed | Linear | GatedLinear | Attend | AttendLatent | Route | Experts | Combine | Head


class Ops:
    """Records a forward pass. Handles may be read until their `add_to` successor is written."""

    def __init__(self) -> None:
        self.records: list[Op] = []
        self.kv_specs: list[KVSpec] = []
        self._n_values = 0
        self._n_routings = 0

    def _value(self, width: int) -> Value:
        self._n_values += 1
        return Value(self._n_values - 1, width)

    def embed(self, table: Matrix) -> Value:
        """The table's rows of the batch's tokens."""
        out = self._value(table.shape[1])
        self.records.append(Embed(table, out))
        return out

    def linear(
        self,
        x: Value,
        weights: Sequence[Matrix],
        biases: Sequence[Float32Array | None] | None = None,
        *,
        norm: Norm | None = None,
    ) -> tuple[Value, ...]:
        """w @ norm(x) + b for each matrix, as one operation."""
        outs = tuple(self._value(w.shape[0]) for w in weights)
        self.records.append(Linear(x, norm, tuple(weights), tuple(biases or [None] * len(outs)), outs, add=False))
        return outs

    def linear_add(self, x: Value, weight: Matrix, residual: Value, bias: Float32Array | None = None) -> Value:
        """residual + w @ x + b, written over the residual."""
        self.records.append(Linear(x, None, (weight,), (bias,), (residual,), add=True))
        return residual

    def gated_linear(self, x: Value, gate: Matrix, up: Matrix, *, norm: Norm | None = None) -> Value:
        """silu(gate @ norm(x)) * (up @ norm(x))."""
        out = self._value(gate.shape[0])
        self.records.append(GatedLinear(x, norm, gate, up, out))
        return out

    def attend(
        self,
        q: Value,
        k: Value,
        v: Value,
        kv: KVSpec,
        *,
        rope: Rope | None,
        scale: float,
        sinks: Float32Array | None = None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
    ) -> Value:
        """Append k and v to the next layer's KV storage and attend causally; q and k are normalised and rotated first.

        sinks: [n_heads] scores that take part in each softmax without adding to its result. q_norm, k_norm: of each
        head by itself, weights [k_dim].
        """
        out = self._value(q.width)
        layer = len(self.kv_specs)
        self.kv_specs.append(kv)
        self.records.append(Attend(q, k, v, out, layer, q.width // kv.k_dim, kv, rope, scale, sinks, q_norm, k_norm))
        return out

    def attend_latent(self, q: Value, latent: Value, heads: LatentHeads, *, rope: Rope, scale: float) -> Value:
        """Append latents to the next layer's KV storage and attend causally to what `heads` makes of them.

        q: per head k_dim numbers and then the rotated ones; latent: a token's latent, not normalised yet, and then the
        rotated part of its keys.
        """
        out = self._value(len(heads.values) * heads.v_dim)
        layer = len(self.kv_specs)
        kv = KVSpec("latent", 1, latent.width, 0)
        self.kv_specs.append(kv)
        self.records.append(AttendLatent(q, latent, out, layer, heads, kv, rope, scale))
        return out

    def route(self, scores: Value, k: int, gating: Gating | None = None) -> Routing:
        """The k experts of the highest scores, the first of equals, and their weights; see Gating."""
        routing = Routing(self._n_routings, scores.width, k)
        self._n_routings += 1
        self.records.append(Route(scores, gating or Gating(), routing))
        return routing

    def experts(
        self,
        x: Value,
        routing: Routing,
        gates: Sequence[Matrix],
        ups: Sequence[Matrix],
        *,
        norm: Norm | None = None,
        gate_bias: Float32Array | None = None,
        up_bias: Float32Array | None = None,
        clamp: Clamp | None = None,
    ) -> Value:
        """The gated activation of every chosen expert, for `combine`."""
        out = self._value(routing.k * gates[0].shape[0])
        self.records.append(Experts(x, norm, routing, tuple(gates), tuple(ups), gate_bias, up_bias, clamp, out))
        return out

    def combine(
        self, x: Value, routing: Routing, weights: Sequence[Matrix], residual: Value, bias: Float32Array | None = None
    ) -> Value:
        """residual + the weighted sum of weights[e] @ x + bias[e] over each token's experts, written over it."""
        self.records.append(Combine(x, routing, tuple(weights), bias, residual))
        return residual

    def matrices_read(self) -> list[tuple[Matrix, float]]:
        """The matrices that a step of one token reads, each once, with the share of them that it reads on average.

        Of an embedding table it reads only one row, of a layer's experts those that were chosen.
        """
        found: dict[int, tuple[Matrix, float]] = {}
        for op in self.records:
            share = 1.0
            match op:
                case Linear(_, _, weights):
                    read = weights
                case GatedLinear(_, _, gate, up):
                    read = (gate, up)
                case AttendLatent(_, _, _, _, heads):
                    read = (*heads.queries, *heads.values)
                case Experts(_, _, routing, gates, ups):
                    read, share = (*gates, *ups), routing.k / routing.n_experts
                case Combine(_, routing, weights):
                    read, share = weights, routing.k / routing.n_experts
                case Head(_, _, weight):
                    read = (weight,)
                case _:
                    read = ()
            found.update((id(matrix), (matrix, share)) for matrix in read)
        return list(found.values())

    def head(self, x: Value, weight: Matrix, *, norm: Norm | None = None) -> None:
        """The logits, weight @ norm(x), of the rows that the batch asks for."""
        self.records.append(Head(x, norm, weight))
