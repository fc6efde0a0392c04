"""Small recorded programs for the kernel tests, and batches to run them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from freehold.core import KV_BLOCK, Batch, Float32Array, KVSpec
from freehold.formats import FORMATS, QTensor
from freehold.kernels import LatentHeads, Norm, Ops, Rope, available_isas
from freehold.models.loader import Backend

VECTOR_ISAS = [level for level in available_isas() if level != "amx"]
"""The levels that compute everything in the same bits; amx does so for less than TILE_TOKENS tokens of a sequence."""

TILE_TOKENS = 16
"""From so many tokens of one sequence on, products of the amx level are in bf16; equals csrc/ops.h."""


def f32(values: npt.NDArray[np.floating]) -> QTensor:
    """A float32 matrix as a tensor."""
    rows = np.ascontiguousarray(values, np.float32)
    return QTensor(FORMATS["F32"], rows.shape, rows.view(np.uint8).reshape(len(rows), -1))


def random_tensor(name: str, n_rows: int, n_cols: int, seed: int) -> QTensor:
    """Random bytes of a format, its scales replaced by small finite ones."""
    rng = np.random.default_rng(seed)
    fmt = FORMATS[name]
    if fmt.block == 1:
        values = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        if name == "F8_E4M3":
            return _random_f8(n_rows, n_cols, rng)
        if name == "BF16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            data = values.astype({"F32": np.float32, "F16": np.float16}[name]).view(np.uint8)
        return QTensor(fmt, (n_rows, n_cols), data.reshape(n_rows, -1))
    data = rng.integers(0, 256, (n_rows, fmt.row_bytes(n_cols)), np.uint8)
    blocks = data.view(fmt.layout)
    for field in fmt.layout.names or ():
        if fmt.layout[field].base == np.dtype(np.float16):
            blocks[field] = rng.uniform(-0.01, 0.01, blocks[field].shape).astype(np.float16)
    if name == "MXFP4":
        blocks["e"] = rng.integers(116, 122, blocks["e"].shape)
    return QTensor(fmt, (n_rows, n_cols), data)


def _random_f8(n_rows: int, n_cols: int, rng: np.random.Generator) -> QTensor:
    """Every code but the two NaNs, scales of blocks of 128 by 128, the last ones partial."""
    codes = rng.integers(0, 254, (n_rows, n_cols), np.uint8)
    codes += codes >= 127  # 127 is NaN, and 255, which is not drawn, too
    scales = rng.uniform(1e-3, 5e-3, (-(-n_rows // 128), -(-n_cols // 128))).astype(np.float32)
    return QTensor(FORMATS["F8_E4M3"], (n_rows, n_cols), codes, np.repeat(scales, 128, axis=0)[:n_rows])


def batch(
    sequences: Sequence[tuple[int, int]], *, rows: Sequence[int] | None = None, tokens: Sequence[int] | None = None
) -> Batch:
    """Sequences of (first position, n_tokens), each with blocks of its own. By default token i is id i, with logits."""
    counts = [n for _, n in sequences]
    total, deepest = sum(counts), max(start + n for start, n in sequences)
    n_blocks = -(-deepest // KV_BLOCK)
    blocks = np.arange(len(sequences) * n_blocks, dtype=np.int32).reshape(len(sequences), n_blocks)
    return Batch(
        tokens=np.arange(total, dtype=np.int32) if tokens is None else np.array(tokens, np.int32),
        positions=np.concatenate([np.arange(s, s + n, dtype=np.int32) for s, n in sequences]),
        seq_starts=np.cumsum([0, *counts], dtype=np.int32),
        block_table=blocks[:, ::-1].copy(),  # descending, so that no code can take them for positions
        logit_rows=np.arange(total, dtype=np.int32) if rows is None else np.array(rows, np.int32),
    )


def product(backend: Backend, x: Float32Array, weight: QTensor, norm: Norm | None = None) -> Float32Array:
    """weight @ norm(x) for the rows of x."""
    ops = Ops()
    ops.head(ops.embed(backend.matrix(f32(x))), backend.matrix(weight), norm=norm)
    program = backend.compile(ops)
    return program.run(batch([(0, len(x))]), program.new_kv(32))


class AttentionProgram:
    """q, k and v straight from the embeddings, attention, and its output as logits."""

    def __init__(
        self,
        backend: Backend,
        n_tokens: int,
        n_heads: int,
        n_kv: int,
        dim: int,
        window: int | None = None,
        sinks: Float32Array | None = None,
        *,
        head_norms: bool = False,
        rotated: int | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        hidden = 32
        ops = Ops()
        x = ops.embed(backend.matrix(f32(rng.standard_normal((n_tokens, hidden)))))
        weights = [rng.standard_normal((n * dim, hidden)) / 4 for n in (n_heads, n_kv, n_kv)]
        q, k, v = ops.linear(x, [backend.matrix(f32(w)) for w in weights])
        spec = KVSpec("full" if window is None else "window", n_kv, dim, dim, window)
        rope = Rope(1e4 ** (-np.arange(0, rotated or dim, 2) / (rotated or dim)))
        norms = [Norm(rng.uniform(0.5, 2, dim).astype(np.float32), eps) if head_norms else None for eps in (1e-5, 1e-3)]
        out = ops.attend(q, k, v, spec, rope=rope, scale=dim**-0.5, sinks=sinks, q_norm=norms[0], k_norm=norms[1])
        ops.head(out, backend.matrix(f32(np.eye(n_heads * dim))))
        self.program = backend.compile(ops)

    def new_kv(self, n_blocks: int = 256) -> Any:
        """KV storage of whichever backend it is."""
        return self.program.new_kv(n_blocks)

    def run(self, batch: Batch, kv: Any = None) -> Float32Array:
        """The attention's output [n_logits, n_heads * dim]."""
        return self.program.run(batch, self.new_kv() if kv is None else kv)


class LatentProgram:
    """Queries and latents straight from the embeddings, latent attention, and its output as logits."""

    def __init__(
        self,
        backend: Backend,
        n_tokens: int,
        n_heads: int = 4,
        k_dim: int = 32,
        rotated: int = 16,
        v_dim: int = 48,
        rank: int = 64,
        weights: str = "BF16",
    ) -> None:
        rng = np.random.default_rng(0)
        hidden = 32
        ops = Ops()
        x = ops.embed(backend.matrix(f32(rng.standard_normal((n_tokens, hidden)))))
        widths = n_heads * (k_dim + rotated), rank + rotated
        q, latent = ops.linear(x, [backend.matrix(f32(rng.standard_normal((n, hidden)) / 4)) for n in widths])
        keys = [random_tensor(weights, k_dim, rank, seed) for seed in range(n_heads)]
        values = [random_tensor(weights, v_dim, rank, 100 + seed) for seed in range(n_heads)]
        heads = LatentHeads(
            norm=Norm(rng.uniform(0.5, 2, rank).astype(np.float32), 1e-5),
            keys=tuple(backend.matrix(key) for key in keys),
            queries=tuple(backend.matrix(key.transposed()) for key in keys),
            values=tuple(backend.matrix(value) for value in values),
        )
        rope = Rope(1e4 ** (-np.arange(0, rotated, 2) / rotated), interleaved=True)
        out = ops.attend_latent(q, latent, heads, rope=rope, scale=0.3 * rank**-0.5)
        ops.head(out, backend.matrix(f32(np.eye(n_heads * v_dim))))
        self.program = backend.compile(ops)

    def new_kv(self, n_blocks: int = 256) -> Any:
        """KV storage of whichever backend it is."""
        return self.program.new_kv(n_blocks)

    def run(self, batch: Batch, kv: Any = None) -> Float32Array:
        """The attention's output [n_logits, n_heads * v_dim]."""
        return self.program.run(batch, self.new_kv() if kv is None else kv)
