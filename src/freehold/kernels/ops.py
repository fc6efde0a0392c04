"""The operations that models are written in, recorded once as a list and run for every batch.

A model file calls an `Ops` like a small tensor library; each call appends one record and returns a handle of its
result. A backend then runs the list: native.py in C++, reference.py in numpy, which is the oracle for the other.
Operations are fused the way the hardware wants them (a norm belongs to the product that reads it, a residual to the
product that writes it), and there are only as many as models need. Knows nothing of model families and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from freehold.core import Float32Array, KVSpec
from freehold.errors import ModelFileError

Matrix = Any
"""A weight [n_rows, n_cols] in a backend's own form, made by its `matrix` method."""


def damaged_scale(label: str) -> ModelFileError:
    """What a backend raises for the tensor named `label`."""
    return ModelFileError(
        f"{label} has an MXFP4 scale of 255, which stands for no number; the file is damaged, so fetch it again"
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

    dim may be less than a head's size: what follows in the head stays as it is.
    """

    inverse_frequencies: npt.NDArray[np.float64]  # [dim / 2]
    scale: float = 1.0


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
class Clamp:
    """A gated activation with bounds, as gpt-oss has it: g * sigmoid(alpha * g) * (u + 1), g <= limit, |u| <= limit."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Routing:
    """Which k of n_experts each token goes to, and their weights."""

    id: int
    n_experts: int
    k: int


@dataclass(frozen=True)
class Route:
    scores: Value
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


Op = Embed | Linear | GatedLinear | Attend | Route | Experts | Combine | Head


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

    def route(self, scores: Value, k: int) -> Routing:
        """The k experts of the highest scores, the first of equals; their weights are the softmax over those k."""
        routing = Routing(self._n_routings, scores.width, k)
        self._n_routings += 1
        self.records.append(Route(scores, routing))
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
