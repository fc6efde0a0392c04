"""Every operation in plain numpy, float32: the oracle. Slow, and as close to the formulas as code gets.

Weights are decoded to float32 and KV is kept in float32. Knows only ops.py's records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from freehold.core import KV_BLOCK, Batch, Float32Array, KVSpec
from freehold.formats import QTensor
from freehold.kernels.ops import (
    Attend,
    Combine,
    Embed,
    Experts,
    GatedLinear,
    Head,
    Linear,
    Norm,
    Op,
    Ops,
    Rope,
    Route,
    damaged_scale,
)


class ReferenceKV:
    """Keys and values [n_blocks * KV_BLOCK, n_heads, dim] per layer."""

    def __init__(self, specs: Sequence[KVSpec], n_blocks: int) -> None:
        self.n_blocks = n_blocks
        rows = n_blocks * KV_BLOCK
        self.keys = [np.zeros((rows, s.n_heads, s.k_dim), np.float32) for s in specs]
        self.values = [np.zeros((rows, s.n_heads, s.v_dim), np.float32) for s in specs]


class ReferenceBackend:
    """The numpy backend. Matrices are float32 arrays [n_rows, n_cols]."""

    def matrix(
        self,
        tensor: QTensor,
        to: str | None = None,
        label: str = "a tensor",
        read: Callable[[], None] | None = None,
    ) -> Float32Array:
        """The numbers as stored: the oracle rounds nothing, whatever `to` says, and needs its source no longer."""
        if tensor.find_nan_scale():
            raise damaged_scale(label)
        return tensor.to_float32()

    def table(self, tensor: QTensor) -> Float32Array:
        """The numbers."""
        return tensor.to_float32()

    def n_bytes(self, matrix: Float32Array) -> int:
        return matrix.nbytes

    def compile(self, ops: Ops) -> ReferenceProgram:
        return ReferenceProgram(ops.records, ops.kv_specs)


class ReferenceProgram:
    """A recorded forward pass, interpreted."""

    def __init__(self, records: Sequence[Op], kv_specs: Sequence[KVSpec]) -> None:
        self._records = records
        self._kv_specs = kv_specs

    def new_kv(self, n_blocks: int) -> ReferenceKV:
        return ReferenceKV(self._kv_specs, n_blocks)

    def run(self, batch: Batch, kv: ReferenceKV) -> Float32Array:
        values: dict[int, Float32Array] = {}
        chosen: dict[int, tuple[npt.NDArray[np.intp], Float32Array]] = {}  # experts and weights [n_tokens, k]
        for op in self._records:
            match op:
                case Embed(table, out):
                    values[out.id] = table[batch.tokens]
                case Linear(x, norm, weights, biases, outs, add):
                    inputs = _normalise(values[x.id], norm)
                    for w, b, out in zip(weights, biases, outs, strict=True):
                        y = inputs @ w.T + (0 if b is None else b)
                        values[out.id] = values[out.id] + y if add else y
                case GatedLinear(x, norm, gate, up, out):
                    inputs = _normalise(values[x.id], norm)
                    g = inputs @ gate.T
                    values[out.id] = g / (1 + np.exp(-g)) * (inputs @ up.T)
                case Attend():
                    values[op.out.id] = _attend(op, batch, kv, values[op.q.id], values[op.k.id], values[op.v.id])
                case Route(scores, routing):
                    chosen[routing.id] = _choose(values[scores.id], routing.k)
                case Experts():
                    experts, _ = chosen[op.routing.id]
                    values[op.out.id] = _expert_rows(op, _normalise(values[op.x.id], op.norm), experts)
                case Combine(x, routing, weights, bias, out):
                    values[out.id] = _combine(values[x.id], *chosen[routing.id], weights, bias, values[out.id])
                case Head(x, norm, weight):
                    logits: Float32Array = _normalise(values[x.id][batch.logit_rows], norm) @ weight.T
        return logits

    def interrupt(self) -> None:
        """Nothing: this is for checking others, and nobody waits for it."""


def _normalise(x: Float32Array, norm: Norm | None) -> Float32Array:
    if norm is None:
        return x
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean_square + np.float32(norm.eps)) * norm.weight).astype(np.float32)


def _rotate(x: Float32Array, positions: np.ndarray, rope: Rope) -> Float32Array:
    """x: [n_tokens, n_heads, dim]"""
    angles = positions[:, None] * rope.inverse_frequencies  # [n_tokens, dim / 2], float64
    cos = (np.cos(angles) * rope.scale).astype(np.float32)[:, None]
    sin = (np.sin(angles) * rope.scale).astype(np.float32)[:, None]
    half = len(rope.inverse_frequencies)
    a, b, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _attend(
    op: Attend, batch: Batch, kv: ReferenceKV, q: Float32Array, k: Float32Array, v: Float32Array
) -> Float32Array:
    n_tokens, n_kv = len(q), op.kv.n_heads
    q = q.reshape(n_tokens, op.n_heads, op.kv.k_dim)
    k = k.reshape(n_tokens, n_kv, op.kv.k_dim)
    q, k = _normalise(q, op.q_norm), _normalise(k, op.k_norm)
    if op.rope is not None:
        q, k = _rotate(q, batch.positions, op.rope), _rotate(k, batch.positions, op.rope)
    keys, values = kv.keys[op.layer], kv.values[op.layer]
    out = np.empty((n_tokens, op.n_heads, op.kv.v_dim), np.float32)
    for s in range(len(batch.seq_starts) - 1):
        mine = slice(batch.seq_starts[s], batch.seq_starts[s + 1])
        positions = batch.positions[mine]
        past = np.arange(positions[-1] + 1)
        slots = batch.block_table[s, past // KV_BLOCK] * KV_BLOCK + past % KV_BLOCK
        keys[slots[positions]] = k[mine]
        values[slots[positions]] = v.reshape(n_tokens, n_kv, op.kv.v_dim)[mine]
        hidden = past > positions[:, None]  # [n_query, n_past]
        if op.kv.window is not None:
            hidden |= past <= positions[:, None] - op.kv.window
        for h in range(op.n_heads):
            kv_head = h * n_kv // op.n_heads
            scores = q[mine, h] @ keys[slots, kv_head].T * np.float32(op.scale)
            scores[hidden] = -np.inf
            sink = np.float32(-np.inf) if op.sinks is None else op.sinks[h]
            largest = np.maximum(scores.max(-1, keepdims=True), sink)
            p = np.exp(scores - largest)
            out[mine, h] = p / (p.sum(-1, keepdims=True) + np.exp(sink - largest)) @ values[slots, kv_head]
    return out.reshape(n_tokens, -1)


def _choose(scores: Float32Array, k: int) -> tuple[npt.NDArray[np.intp], Float32Array]:
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :k]  # stable: of equal scores the first
    best = np.take_along_axis(scores, order, -1)
    weights = np.exp(best - best[:, :1])
    return order, weights / weights.sum(-1, keepdims=True)


def _expert_rows(op: Experts, x: Float32Array, experts: npt.NDArray[np.intp]) -> Float32Array:
    """[n_tokens, k * n_rows]"""
    rows = np.empty((*experts.shape, op.gates[0].shape[0]), np.float32)
    for e in np.unique(experts):
        tokens, slots = np.nonzero(experts == e)
        gate = x[tokens] @ op.gates[e].T + (0 if op.gate_bias is None else op.gate_bias[e])
        up = x[tokens] @ op.ups[e].T + (0 if op.up_bias is None else op.up_bias[e])
        if op.clamp is None:
            rows[tokens, slots] = gate / (1 + np.exp(-gate)) * up
        else:
            gate, up = np.minimum(gate, op.clamp.limit), np.clip(up, -op.clamp.limit, op.clamp.limit)
            rows[tokens, slots] = gate / (1 + np.exp(-op.clamp.alpha * gate)) * (up + 1)
    return rows.reshape(len(x), -1)


def _combine(
    x: Float32Array,
    experts: npt.NDArray[np.intp],
    shares: Float32Array,
    weights: Sequence[Float32Array],
    bias: Float32Array | None,
    residual: Float32Array,
) -> Float32Array:
    rows = x.reshape(*experts.shape, -1)  # [n_tokens, k, n_cols]
    out = residual.copy()
    for slot in range(experts.shape[1]):
        for e in np.unique(experts[:, slot]):
            tokens = np.nonzero(experts[:, slot] == e)[0]
            y = rows[tokens, slot] @ weights[e].T + (0 if bias is None else bias[e])
            out[tokens] += shares[tokens, slot, None] * y
    return out
