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

Matrix = Any
"""A weight [n_rows, n_cols] in a backend's own form, made by its `matrix` method."""


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
    """Rotary embedding of pairs (i, i + dim / 2): angle = position * inverse_frequency[i], cos and sin * `scale`."""

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


@dataclass(frozen=True)
class Head:
    x: Value
    norm: Norm | None
    weight: Matrix


Op = Embed | Linear | GatedLinear | Attend | Head


class Ops:
    """Records a forward pass. Handles may be read until their `add_to` successor is written."""

    def __init__(self) -> None:
        self.records: list[Op] = []
        self.kv_specs: list[KVSpec] = []
        self._n_values = 0

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

    def attend(self, q: Value, k: Value, v: Value, kv: KVSpec, *, rope: Rope | None, scale: float) -> Value:
        """Append k and v to the next layer's KV storage and attend causally; q and k are rotated first."""
        out = self._value(q.width)
        layer = len(self.kv_specs)
        self.kv_specs.append(kv)
        self.records.append(Attend(q, k, v, out, layer, q.width // kv.k_dim, kv, rope, scale))
        return out

    def matrices_read(self) -> list[Matrix]:
        """The matrices that every step reads whole, each once; of an embedding table it reads only its tokens' rows."""
        found: dict[int, Matrix] = {}
        for op in self.records:
            match op:
                case Linear(_, _, weights):
                    found.update((id(weight), weight) for weight in weights)
                case GatedLinear(_, _, gate, up):
                    found.update({id(gate): gate, id(up): up})
                case Head(_, _, weight):
                    found[id(weight)] = weight
        return list(found.values())

    def head(self, x: Value, weight: Matrix, *, norm: Norm | None = None) -> None:
        """The logits, weight @ norm(x), of the rows that the batch asks for."""
        self.records.append(Head(x, norm, weight))
