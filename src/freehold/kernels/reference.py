"""Every operation in plain numpy, float32: the oracle. Slow, and as close to the formulas as code gets.

Weights are decoded to float32 and KV is kept in float32. Knows only ops.py's records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from freehold.core import KV_BLOCK, Batch, Float32Array, KVSpec
from freehold.formats import QTensor
from freehold.kernels.ops import (
    Attend,
    AttendLatent,
    Combine,
    Embed,
    Experts,
    GatedLinear,
    Gating,
    Head,
    Linear,
    Norm,
    Op,
    Ops,
    Rope,
    Route,
    Value,
    damaged,
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
        numbers = tensor.to_float32()
        if tensor.find_nan_scale() or (tensor.format.name == "F8_E4M3" and not np.isfinite(numbers).all()):
            raise damaged(label, tensor.format.name)
        if read is not None:
            read()
        return numbers

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
        last_use = {value.id: index for index, op in enumerate(records) for value in _values_of(op)}
        self._dying: dict[int, list[int]] = {}  # after an operation, the values that nobody reads any more
        for value, index in last_use.items():
            self._dying.setdefault(index, []).append(value)

    def new_kv(self, n_blocks: int) -> ReferenceKV:
        return ReferenceKV(self._kv_specs, n_blocks)

    def run(self, batch: Batch, kv: ReferenceKV) -> Float32Array:
        values: dict[int, Float32Array] = {}
        chosen: dict[int, tuple[npt.NDArray[np.intp], Float32Array]] = {}  # experts and weights [n_tokens, k]
        for index, op in enumerate(self._records):
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
                case AttendLatent():
                    values[op.out.id] = _attend_latent(op, batch, kv, values[op.q.id], values[op.latent.id])
                case Route(scores, gating, routing):
                    chosen[routing.id] = _choose(values[scores.id], routing.k, gating)
                case Experts():
                    experts, _ = chosen[op.routing.id]
                    values[op.out.id] = _expert_rows(op, _normalise(values[op.x.id], op.norm), experts)
                case Combine(x, routing, weights, bias, out):
                    values[out.id] = _combine(values[x.id], *chosen[routing.id], weights, bias, values[out.id])
                case Head(x, norm, weight):
                    logits: Float32Array = _normalise(values[x.id][batch.logit_rows], norm) @ weight.T
            for value in self._dying.get(index, ()):
                values.pop(value, None)
        return logits

    def interrupt(self) -> None:
        """Nothing: this is for checking others, and nobody waits for it."""


def _values_of(op: Op) -> list[Value]:
    """The values that an operation reads or writes."""
    fields = (field if isinstance(field, tuple) else (field,) for field in vars(op).values())
    return [value for field in fields for value in field if isinstance(value, Value)]


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
    first = slice(0, 2 * half, 2) if rope.interleaved else slice(half)
    second = slice(1, 2 * half, 2) if rope.interleaved else slice(half, 2 * half)
    a, b, out = x[..., first], x[..., second], x.copy()
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


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
    for mine, positions, slots in _sequences(batch):
        keys[slots[positions]] = k[mine]
        values[slots[positions]] = v.reshape(n_tokens, n_kv, op.kv.v_dim)[mine]
        for h in range(op.n_heads):
            kv_head = h * n_kv // op.n_heads
            scores = q[mine, h] @ keys[slots, kv_head].T * np.float32(op.scale)
            sink = np.float32(-np.inf) if op.sinks is None else op.sinks[h]
            out[mine, h] = _softmax(scores, positions, op.kv.window, sink) @ values[slots, kv_head]
    return out.reshape(n_tokens, -1)


def _attend_latent(
    op: AttendLatent, batch: Batch, kv: ReferenceKV, q: Float32Array, latent: Float32Array
) -> Float32Array:
    """The plain form: keys and values of every past token are made from its latent anew."""
    n_tokens, n_heads, k_dim = len(q), len(op.heads.keys), op.heads.k_dim
    rank = len(op.heads.norm.weight)
    q = q.reshape(n_tokens, n_heads, -1)
    q_rotated = _rotate(q[..., k_dim:], batch.positions, op.rope)
    k_rotated = _rotate(latent[:, None, rank:], batch.positions, op.rope)[:, 0]
    latent = np.concatenate([_normalise(latent[:, :rank], op.heads.norm), k_rotated], axis=-1)
    cache = kv.keys[op.layer][:, 0]  # [rows, rank + rotated]
    out = np.empty((n_tokens, n_heads, op.heads.v_dim), np.float32)
    for mine, positions, slots in _sequences(batch):
        cache[slots[positions]] = latent[mine]
        past, past_rotated = np.split(cache[slots], [rank], axis=-1)
        for h in range(n_heads):
            keys, values = past @ op.heads.keys[h].T, past @ op.heads.values[h].T
            scores = (q[mine, h, :k_dim] @ keys.T + q_rotated[mine, h] @ past_rotated.T) * np.float32(op.scale)
            out[mine, h] = _softmax(scores, positions) @ values
    return out.reshape(n_tokens, -1)


def _sequences(batch: Batch) -> Iterator[tuple[slice, npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Each sequence's rows of the batch, their positions, and the KV rows of position 0 to its last one."""
    for s in range(len(batch.seq_starts) - 1):
        mine = slice(batch.seq_starts[s], batch.seq_starts[s + 1])
        positions = batch.positions[mine]
        past = np.arange(positions[-1] + 1)
        yield mine, positions, batch.block_table[s, past // KV_BLOCK] * KV_BLOCK + past % KV_BLOCK


def _softmax(
    scores: Float32Array, positions: npt.NDArray[np.int32], window: int | None = None, sink: Any = -np.inf
) -> Float32Array:
    """Over what each query [n_query, n_past] may see, and the sink, whose share is left out."""
    past = np.arange(scores.shape[1])
    hidden = past > positions[:, None]
    if window is not None:
        hidden |= past <= positions[:, None] - window
    scores[hidden] = -np.inf
    largest = np.maximum(scores.max(-1, keepdims=True), np.float32(sink))
    p = np.exp(scores - largest)
    shares: Float32Array = p / (p.sum(-1, keepdims=True) + np.exp(np.float32(sink) - largest))
    return shares


def _choose(scores: Float32Array, k: int, gating: Gating) -> tuple[npt.NDArray[np.intp], Float32Array]:
    """Experts [n_tokens, k], the best first, and their weights."""
    if gating.score == "sigmoid":
        shares = 1 / (1 + np.exp(-scores))
    else:
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
    # Ranked by scores where that is the same order: shares may be equal after rounding where scores are not.
    same_order = gating.bias is None and gating.group_best == 1
    ranks = scores if same_order else shares + (0 if gating.bias is None else gating.bias)
    if gating.n_groups > 1:
        groups = ranks.reshape(len(ranks), gating.n_groups, -1)
        best = np.sort(groups, axis=-1)[..., -gating.group_best :].sum(-1)
        kept = np.argsort(-best, axis=-1, kind="stable")[:, : gating.n_kept_groups]
        masked = np.full_like(groups, -np.inf)
        np.put_along_axis(masked, kept[..., None], np.take_along_axis(groups, kept[..., None], 1), 1)
        ranks = masked.reshape(ranks.shape)
    order = np.argsort(-ranks, axis=-1, kind="stable")[:, :k]  # stable: of equals the first
    weights = np.take_along_axis(np.asarray(shares, np.float32), order, -1)
    if gating.normalised:
        weights = weights / (weights.sum(-1, keepdims=True) + np.float32(1e-20))
    return order, weights * np.float32(gating.scale)


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
