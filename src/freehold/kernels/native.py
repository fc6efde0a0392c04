"""The C++ backend: packs weights, lowers recorded operations to a native program, chooses the instruction-set level.

Owns the translation between our values and the extension's; all arithmetic is in csrc/. Buffers of the program are
reused as soon as their value was read for the last time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freehold.core import KV_BLOCK, Batch, Float32Array, Interrupted, KVSpec
from freehold.errors import KernelError, UnsupportedError
from freehold.formats import QTensor
from freehold.kernels import _kernels
from freehold.kernels.ops import (
    Attend,
    AttendLatent,
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
    Value,
    damaged,
    damaged_number,
)

_NAMES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K MXFP4 F8_E4M3"
FORMATS = tuple(_NAMES.split())
"""Formats with kernels, in the order of csrc/formats.h."""

ROUNDED_FROM = ("F32", "F16", "BF16", "F8_E4M3")
ROUNDED_TO = ("Q8_0", "Q4_1", "Q4_K")
"""Formats that packing can round from, and to (csrc/quantise.cpp)."""

PACKED_LAYOUT = 3
"""Version of the packed form: counts up with every change to what csrc/pack.cpp, or a reader that puts rows in order,
makes of a tensor's bytes, or how it rounds. What another version packed is packed anew."""

SMALL_BYTES = 4 << 20
"""Matrices below this are packed by the calling thread alone, in about a millisecond per MB: while a small model loads,
another thread needs a core for its text."""

WAITING_BYTES = 16 << 20
"""Small matrices wait until there are so many bytes of them. One call then packs them all without the interpreter lock,
which the thread of the text holds for tens of milliseconds at a time."""

PIECE_BYTES = 64 << 20
"""So much of a large tensor is packed before its pages are given back."""

_Source = tuple[int, npt.NDArray[np.uint8], "npt.NDArray[np.uint8] | None"]
"""A matrix's bytes as the extension takes them: format, rows, and scales where they are stored apart."""

assert _kernels.KV_BLOCK == KV_BLOCK


def available_isas() -> list[str]:
    """Instruction-set levels that this processor and operating system can run, from plain to best."""
    return [name for name, runs_here, _ in _kernels.levels() if runs_here]


def isa() -> str:
    """The level in use: the best available, or what FREEHOLD_ISA names. Raises KernelError if that cannot run here."""
    forced = os.environ.get("FREEHOLD_ISA")
    if not forced:
        return available_isas()[-1]
    levels = {name: (runs_here, needs) for name, runs_here, needs in _kernels.levels()}
    if forced not in levels:
        raise KernelError(f"FREEHOLD_ISA is {forced!r}; this build has the levels {', '.join(levels)}")
    runs_here, needs = levels[forced]
    if not runs_here:
        raise KernelError(
            f"FREEHOLD_ISA is {forced!r}, but this processor lacks {needs}; it runs {', '.join(available_isas())}"
        )
    return forced


def explain_isa() -> str:
    """One line: which level is used and why not a better one."""
    chosen = isa()
    if os.environ.get("FREEHOLD_ISA"):
        return f"{chosen} (forced by FREEHOLD_ISA)"
    missing = [f"{name} needs {needs}" for name, runs_here, needs in _kernels.levels() if not runs_here]
    return f"{chosen} (the best this processor runs{'; ' + '; '.join(missing) if missing else ''})"


def measure_bandwidth(n_threads: int, n_bytes: int = 64 << 20) -> float:
    """Memory read bandwidth in GB/s with all threads reading n_bytes each, which all caches together cannot hold."""
    return _kernels.measure_bandwidth(_kernels.Pool(n_threads), n_bytes)


def wrap(data: npt.NDArray[np.uint8], fmt: str, n_rows: int, n_cols: int) -> _kernels.Packed:
    """A matrix of bytes packed before, by the same layout; they are kept alive. KernelError if they do not fit."""
    try:
        return _kernels.wrap(data, FORMATS.index(fmt), n_rows, n_cols)
    except ValueError as error:
        raise KernelError(f"{len(data)} bytes are no packed {fmt} matrix [{n_rows}, {n_cols}]: {error}") from error


def packed_bytes(fmt: str, n_rows: int, n_cols: int) -> int:
    """Bytes of a packed matrix; n_cols is a multiple of the format's block."""
    return _kernels.packed_bytes(FORMATS.index(fmt), n_rows, n_cols)


def unwrap(matrix: _kernels.Packed) -> tuple[str, npt.NDArray[np.uint8]]:
    """A packed matrix's format and bytes, final once the program was compiled; a view that keeps them alive."""
    return FORMATS[matrix.format], matrix.data


class NativeKV:
    """KV blocks [n_blocks, elements] of f16, every layer's part after the other; pages are touched only when used."""

    def __init__(self, n_blocks: int, block_elements: int) -> None:
        self.n_blocks = n_blocks
        self.data: npt.NDArray[np.uint16] = np.zeros((n_blocks, block_elements), np.uint16)


@dataclass(frozen=True)
class _Table:
    """Rows of bfloat16 where a file has them."""

    shape: tuple[int, ...]
    rows: npt.NDArray[np.uint8]
    n_bytes: int = 0  # of memory that it takes whatever is read


class NativeBackend:
    """Packs matrices into one arena and runs programs on one pool of `n_threads` workers at one level.

    expected_bytes: of weights to come; memory for them is made ready meanwhile. byte_activations: products take
    activations as 8-bit codes instead of 16-bit ones where a format's kernels can (docs/kernels.md, What is rounded).
    """

    def __init__(
        self, n_threads: int, level: str | None = None, expected_bytes: int = 0, *, byte_activations: bool = False
    ) -> None:
        self._level = level or isa()
        self._byte_activations = byte_activations
        self._pool = _kernels.Pool(n_threads)
        self._caller = _kernels.Pool(1)  # no worker beside the calling thread
        self._arena = _kernels.Arena(expected_bytes)
        self._waiting: list[tuple[_kernels.Packed, _Source, str]] = []
        self._waiting_reads: dict[Callable[[], None], None] = {}  # of these, each once, in order
        self._waiting_bytes = 0

    def matrix(
        self,
        tensor: QTensor,
        to: str | None = None,
        label: str = "a tensor",
        read: Callable[[], None] | None = None,
    ) -> _kernels.Packed:
        """Pack a two-dimensional tensor, at the latest in `compile`; its bytes must stay readable until then.

        `to` is a format of ROUNDED_TO to round one of ROUNDED_FROM to. `label` names the tensor in errors:
        UnsupportedError for a format without kernels, ModelFileError, here or in `compile`, for what stands for no
        number (see `damaged`) or cannot be rounded. `read` is called when the tensor was read and its pages may go; of
        a large one after every piece.
        """
        name = tensor.format.name
        if name not in FORMATS:
            raise UnsupportedError(f"no kernels for {name} weights; formats with kernels: {', '.join(FORMATS)}")
        scales = None if tensor.scales is None else tensor.scales.view(np.uint8)
        source = (FORMATS.index(name), tensor.data, scales)
        packed = _kernels.reserve(self._arena, FORMATS.index(to or name), *tensor.shape)
        if tensor.n_bytes >= SMALL_BYTES:
            self._pack_in_pieces(packed, source, label, read)
            return packed
        self._waiting.append((packed, source, label))
        self._waiting_bytes += tensor.n_bytes
        if read is not None:
            self._waiting_reads[read] = None
        if self._waiting_bytes >= WAITING_BYTES:
            self.pack_waiting()
        return packed

    def pack_waiting(self) -> None:
        """Pack the small matrices that `matrix` left for later."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._fill(self._caller, waiting)
        reads, self._waiting_reads = self._waiting_reads, {}
        for read in reads:
            read()

    def table(self, tensor: QTensor) -> _Table:
        """Rows in bfloat16, looked up where they are; they are kept alive."""
        return _Table(tensor.shape, tensor.data)

    def _pack_in_pieces(
        self, packed: _kernels.Packed, source: _Source, label: str, read: Callable[[], None] | None
    ) -> None:
        rows = source[1]
        panels, piece = -(-len(rows) // _kernels.PANEL), max(1, PIECE_BYTES // (_kernels.PANEL * rows.shape[1]))
        for first in range(0, panels, piece):
            self._fill(self._pool, [(packed, source, label)], first, first + piece)
            if read is not None:
                read()

    def _fill(self, pool: _kernels.Pool, work: Sequence[tuple[_kernels.Packed, _Source, str]], *panels: int) -> None:
        """Pack the matrices, or of each the panels from the first to before the second of `panels`."""
        packed, sources = [packed for packed, _, _ in work], [source for _, source, _ in work]
        found = _kernels.fill(pool, packed, sources, self._level, *panels)
        if found >= 0:
            matrix, (source, _, _), label = work[found]
            raise damaged(label, FORMATS[source]) if matrix.format == source else damaged_number(label)

    def n_bytes(self, matrix: _kernels.Packed) -> int:
        """Bytes of a packed matrix."""
        return matrix.n_bytes

    def compile(self, ops: Ops) -> NativeProgram:
        """Lower a recording."""
        self.pack_waiting()
        return NativeProgram(_kernels.Program(self._pool, self._level, self._byte_activations), ops)


class NativeProgram:
    """A forward pass in the extension."""

    def __init__(self, program: _kernels.Program, ops: Ops) -> None:
        self._program = program
        self._layer_offsets = _layer_offsets(ops.kv_specs)
        self._ropes: dict[int, int] = {}
        self._routings: dict[int, int] = {}
        self._buffers = _Buffers(program, ops.records)
        for index, op in enumerate(ops.records):
            self._lower(op)
            self._buffers.release_after(index)

    def new_kv(self, n_blocks: int) -> NativeKV:
        return NativeKV(n_blocks, self._layer_offsets[-1])

    def run(self, batch: Batch, kv: NativeKV) -> Float32Array:
        logits = np.empty((len(batch.logit_rows), self._n_vocab), np.float32)
        try:
            done = self._program.run(
                batch.tokens, batch.positions, batch.seq_starts, batch.block_table, batch.logit_rows, batch.prompts,
                kv.data, logits,
            )  # fmt: skip
        except ValueError as error:
            raise KernelError(f"the batch does not fit the model: {error}") from error
        if not done:
            raise Interrupted
        return logits

    def interrupt(self) -> None:
        self._program.interrupt()

    def _lower(self, op: Op) -> None:
        buffer, program = self._buffers.of, self._program
        match op:
            case Embed(table, out):
                if isinstance(table, _Table):
                    program.embed_rows(table.rows, buffer(out))
                else:
                    program.embed(table, buffer(out))
            case Linear(x, norm, weights, biases, outs, add):
                program.linear(buffer(x), *_norm(norm), list(weights), list(biases), [buffer(o) for o in outs], add)
            case GatedLinear(x, norm, gate, up, out):
                program.gated(buffer(x), *_norm(norm), gate, up, buffer(out))
            case Attend():
                self._lower_attend(op)
            case AttendLatent():
                self._lower_latent(op)
            case Route(scores, g, out):
                groups = g.n_groups, g.n_kept_groups, g.group_best
                self._routings[out.id] = program.route(
                    buffer(scores), out.n_experts, out.k, g.score == "sigmoid", g.normalised, g.scale, g.bias, *groups
                )
            case Experts(x, norm, routing, gates, ups, gate_bias, up_bias, clamp, out):
                bounds = None if clamp is None else (clamp.alpha, clamp.limit)
                chosen = self._routings[routing.id]
                program.experts(
                    buffer(x), *_norm(norm), chosen, list(gates), list(ups), gate_bias, up_bias, bounds, buffer(out)
                )
            case Combine(x, routing, weights, bias, out):
                program.combine(buffer(x), self._routings[routing.id], list(weights), bias, buffer(out))
            case Head(x, norm, weight):
                self._n_vocab = weight.shape[0]
                program.head(buffer(x), *_norm(norm), weight)

    def _lower_attend(self, op: Attend) -> None:
        _check_heads(op.kv.k_dim, op.kv.v_dim)
        if op.n_heads % op.kv.n_heads or op.n_heads // op.kv.n_heads > _kernels.MAX_GROUP:
            raise UnsupportedError(
                f"{op.n_heads} query heads over {op.kv.n_heads} KV heads have no kernel; "
                f"expected a whole number, at most {_kernels.MAX_GROUP}, of query heads per KV head"
            )
        rotated = 0 if op.rope is None else 2 * len(op.rope.inverse_frequencies)
        if rotated > op.kv.k_dim:
            raise UnsupportedError(
                f"{rotated} rotated dimensions in a head of {op.kv.k_dim}; expected no more than it has"
            )
        b = self._buffers.of
        self._program.attention(
            b(op.q), b(op.k), b(op.v), b(op.out), self._layer_offsets[op.layer],
            op.n_heads, op.kv.n_heads, op.kv.k_dim, op.kv.v_dim, op.kv.window or 0, self._rope(op.rope), op.scale,
            op.sinks, *_norm(op.q_norm), *_norm(op.k_norm),
        )  # fmt: skip

    def _lower_latent(self, op: AttendLatent) -> None:
        heads, rank = op.heads, len(op.heads.norm.weight)
        rotated = op.latent.width - rank
        _check_heads(heads.k_dim + rotated, heads.v_dim)
        if rank % 16 or rank > _kernels.MAX_LATENT or rotated % 16:
            raise UnsupportedError(
                f"latents of {rank} dimensions and {rotated} rotated ones have no kernel; expected multiples of 16, "
                f"the first at most {_kernels.MAX_LATENT}"
            )
        b = self._buffers.of
        self._program.attention_of_latents(
            b(op.q), b(op.latent), b(op.out), self._layer_offsets[op.layer], *_norm(heads.norm),
            list(heads.keys), list(heads.queries), list(heads.values), self._rope(op.rope), op.scale,
        )  # fmt: skip

    def _rope(self, rope: Rope | None) -> int:
        if rope is None:
            return -1
        if id(rope) not in self._ropes:
            frequencies = rope.inverse_frequencies.tolist()
            self._ropes[id(rope)] = self._program.rope(frequencies, rope.scale, rope.interleaved)
        return self._ropes[id(rope)]


def _check_heads(k_dim: int, v_dim: int) -> None:
    if any(dim % 16 or dim > _kernels.MAX_HEAD_DIM for dim in (k_dim, v_dim)):
        raise UnsupportedError(
            f"attention heads of {k_dim} key and {v_dim} value dimensions have no kernel; "
            f"expected multiples of 16, at most {_kernels.MAX_HEAD_DIM}"
        )


def _norm(norm: Norm | None) -> tuple[Float32Array | None, float]:
    return (None, 0.0) if norm is None else (np.ascontiguousarray(norm.weight, np.float32), norm.eps)


def _layer_offsets(specs: Sequence[KVSpec]) -> list[int]:
    """Where each layer's part of a KV block starts, in elements, and after the last where the block ends."""
    offsets = [0]
    for spec in specs:
        offsets.append(offsets[-1] + spec.elements_per_token() * KV_BLOCK)
    return offsets


class _Buffers:
    """Which native buffer holds which value: one is free again after the last operation that touches its value."""

    def __init__(self, program: _kernels.Program, records: Sequence[Op]) -> None:
        self._program = program
        self._assigned: dict[int, int] = {}
        self._free: dict[int, list[int]] = {}  # by width
        last_use = {value: index for index, op in enumerate(records) for value in _touched(op)}
        self._dying: dict[int, list[Value]] = {}
        for value, index in last_use.items():
            self._dying.setdefault(index, []).append(value)

    def of(self, value: Value) -> int:
        if value.id not in self._assigned:
            free = self._free.get(value.width)
            self._assigned[value.id] = free.pop() if free else self._program.buffer(value.width)
        return self._assigned[value.id]

    def release_after(self, index: int) -> None:
        for value in self._dying.get(index, ()):
            self._free.setdefault(value.width, []).append(self._assigned[value.id])


def _touched(op: Op) -> tuple[Value, ...]:
    match op:
        case Embed(_, out):
            return (out,)
        case Linear():
            return (op.x, *op.outs)
        case GatedLinear():
            return (op.x, op.out)
        case Attend():
            return (op.q, op.k, op.v, op.out)
        case AttendLatent():
            return (op.q, op.latent, op.out)
        case Route():
            return (op.scores,)
        case Experts() | Combine():
            return (op.x, op.out)
        case Head():
            return (op.x,)
