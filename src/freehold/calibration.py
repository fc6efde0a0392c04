"""This machine as the planner's device: its rates, measured once with our own kernels and remembered.

Owns what is measured (reading and multiplying weights of each format, attention, the overhead of a layer), the file
that remembers it, and the Device made of it. Small synthetic products only; knows nothing of models' shapes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from freehold import kernels
from freehold.core import KV_BLOCK, Batch, KVSpec
from freehold.formats import F8_BLOCK, FORMATS, QTensor
from freehold.hardware import Machine
from freehold.hardware.estimate import ANY, Device
from freehold.kernels import Matrix, NativeBackend, Norm, Ops
from freehold.kernels.native import NativeProgram

MEASURED = ("Q8_0", "MXFP4", "Q4_K", "Q6_K", "Q4_1", "BF16", "F8_E4M3")
"""The formats that matter. Others take the rates of one that is decoded like them."""

ALIKE = {"F16": "BF16", "F32": "BF16", "INT4": "Q4_K", "Q4_0": "Q4_1", "Q5_0": "Q6_K", "Q5_1": "Q6_K", "Q5_K": "Q6_K"}

VERSION = 2
"""Of how all this is measured: what another version remembered is measured anew."""

SIDE = 2048
READ_BYTES = 64 << 20
"""Of weights per format, and of keys and values, so that most come from memory; a rate above its own is a cache's."""
N_MULTIPLIED = 2
PROMPT, GROUP = 512, 64
"""Tokens of a step of prefill, and of those one expert's share; N_MULTIPLIED matrices are multiplied with them."""

SPREAD = 1.25
PREFILL_SPREAD = 1.35
"""Factors either way that `freehold bench` may differ: other programs share the cores and the memory."""

_BYTE = 0x3C  # a harmless number in every format, as code and as scale


@dataclass(frozen=True)
class Calibration:
    """Rates of this machine: bytes/s and FLOP/s by format, seconds per layer. `key` is what they hold for."""

    key: str
    bandwidth: float
    read: dict[str, float] = field(hash=False)
    product: dict[str, float] = field(hash=False)
    grouped: dict[str, float] = field(hash=False)
    kv_rate: float = 0.0
    attention: float = 0.0
    overhead: float = 0.0
    seconds: float = 0.0


def calibrated(
    machine: Machine, release: str, *, again: bool = False, note: Callable[[str], None] | None = None
) -> Calibration:
    """What is remembered of this machine under `release`, Freehold's version, or measured now, which takes up to half a
    minute. `again` measures anyway.
    """
    key = f"{machine.cpu}; {machine.n_threads} threads; {kernels.isa()}; freehold {release}; measured by {VERSION}"
    path = machine.store / "cache" / "calibration.json"
    found = None if again else _remembered(path, key)
    if found is not None:
        return found
    if note:
        note("measuring this machine once, in less than 30 s")
    found = measure(machine.n_threads, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        if note:
            note(f"this is not remembered: {path} cannot be written ({error.strerror})")
    return found


def device_here(machine: Machine, found: Calibration) -> Device:
    """This machine as a Device, with the memory that this process may use."""
    return Device(
        name="this machine",
        memory=float(machine.memory_budget),
        read_rates=_with_likes(found.read),
        product_rates=_with_likes(found.product),
        grouped_rates=_with_likes(found.grouped),
        kv_rate=found.kv_rate,
        attention_rate=found.attention,
        decode_attention=math.inf,  # one token's was measured as a whole, by the bytes it reads
        overhead=found.overhead,
        decode_spread=SPREAD,
        prefill_spread=PREFILL_SPREAD,
        chunk=PROMPT,
        n_threads=machine.n_threads,
        basis="measured",
    )


def measure(n_threads: int, key: str = "") -> Calibration:
    """Measure all rates as they typically are: medians of several runs, which take turns, since others may use the
    machine meanwhile.
    """
    start = time.perf_counter()
    bandwidth = 1e9 * max(kernels.measure_bandwidth(n_threads) for _ in range(3))
    chains = {name: _Chain(name, n_threads) for name in MEASURED}
    small, attention = _SmallLayers(n_threads), _Attention(n_threads)
    single = {**{name: chain.decode for name, chain in chains.items()}, "small": small.decode, "kv": attention.decode}
    read = _typical(single, 11)
    product = _typical({name: chain.prefill for name, chain in chains.items()} | {"kv": attention.prefill}, 3)
    grouped = _typical({name: chain.group for name, chain in chains.items()}, 5)
    rates = {name: chain.n_bytes / read[name] for name, chain in chains.items()}
    return Calibration(
        key,
        bandwidth,
        read=rates,
        product={name: PROMPT * _Chain.FLOPS / product[name] for name in MEASURED},
        grouped={name: GROUP * _Chain.FLOPS / grouped[name] for name in MEASURED},
        kv_rate=attention.kv_bytes / read["kv"],
        attention=attention.flops / product["kv"],
        overhead=max(0.0, read["small"] - small.n_bytes / rates[small.FORMAT]) / small.n_layers,
        seconds=round(time.perf_counter() - start, 1),
    )


def _remembered(path: Path, key: str) -> Calibration | None:
    """What the file says, if it is of this machine and whole."""
    try:
        found = Calibration(**json.loads(path.read_text("utf-8")))
        rates = [*found.read.values(), *found.product.values(), *found.grouped.values()]
        rates += [found.bandwidth, found.kv_rate, found.attention]
        sound = set(found.read) == set(found.product) == set(found.grouped) == set(MEASURED)
        sound = sound and all(math.isfinite(rate) and rate > 0 for rate in rates) and 0 <= found.overhead < 1
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # absent, damaged, or an older version's: measured anew
    return found if sound and found.key == key else None


def _with_likes(rates: dict[str, float]) -> dict[str, float]:
    likes = {name: rates[other] for name, other in ALIKE.items()}
    return {**rates, **likes, ANY: rates["Q4_K"]}


class _Chain:
    """Products of one format, each of the one before it, normalised so that numbers stay of order 1."""

    FLOPS = 2.0 * SIDE * SIDE * N_MULTIPLIED  # per token, in `prefill` and `group`

    def __init__(self, name: str, n_threads: int) -> None:
        tensor, backend = _weight(name, SIDE, SIDE), NativeBackend(n_threads)
        weights = [backend.matrix(tensor) for _ in range(max(N_MULTIPLIED, READ_BYTES // tensor.n_bytes))]
        self.n_bytes = tensor.n_bytes * len(weights)
        self._every, self._few = (self._program(backend, part) for part in (weights, weights[:N_MULTIPLIED]))
        self._kv = self._every.new_kv(PROMPT // KV_BLOCK)  # which no operation uses

    def decode(self) -> None:
        self._every.run(_batch(1), self._kv)

    def prefill(self) -> None:
        self._few.run(_batch(PROMPT), self._kv)

    def group(self) -> None:
        self._few.run(_batch(GROUP), self._kv)

    @staticmethod
    def _program(backend: NativeBackend, weights: Sequence[Matrix]) -> NativeProgram:
        ops, norm = Ops(), Norm(np.ones(SIDE, np.float32), 1e-5)
        x = ops.embed(_matrix(backend, KV_BLOCK, SIDE))
        for weight in weights:
            (x,) = ops.linear(x, [weight], norm=norm)
        ops.head(x, _matrix(backend, KV_BLOCK, SIDE))
        return backend.compile(ops)


class _Attention:
    """Layers of next to nothing but attention, at a depth of 4 PROMPT."""

    def __init__(self, n_threads: int) -> None:
        n_layers, n_heads, n_kv, dim, self._depth = 16, 16, 8, 64, 4 * PROMPT
        backend, ops = NativeBackend(n_threads), Ops()
        norm, spec = Norm(np.ones(n_heads * dim, np.float32), 1.0), KVSpec("full", n_kv, dim, dim)
        x = ops.embed(_matrix(backend, KV_BLOCK, dim))
        for _ in range(n_layers):
            q, k, v = ops.linear(x, [_matrix(backend, n * dim, dim) for n in (n_heads, n_kv, n_kv)])
            out = ops.attend(q, k, v, spec, rope=None, scale=1 / dim)
            (x,) = ops.linear(out, [_matrix(backend, dim, n_heads * dim)], norm=norm)
        ops.head(x, _matrix(backend, KV_BLOCK, dim))
        self._program = backend.compile(ops)
        self._kv = self._program.new_kv(5 * PROMPT // KV_BLOCK)
        self._kv.data.fill(0)  # takes its memory, as tokens would
        self.kv_bytes = n_layers * 2 * n_kv * dim * 2 * self._depth
        self.flops = n_layers * 4.0 * n_heads * dim * PROMPT * (self._depth - PROMPT / 2)
        assert self.kv_bytes >= READ_BYTES

    def decode(self) -> None:
        self._program.run(_batch(1, self._depth), self._kv)

    def prefill(self) -> None:
        self._program.run(_batch(PROMPT, self._depth - PROMPT), self._kv)


class _SmallLayers:
    """Layers of a small model, of which threads waiting for each other, and reading starting anew, are a good part."""

    FORMAT = "Q8_0"

    def __init__(self, n_threads: int) -> None:
        side, dim, n_matrices = 512, 64, 7
        backend, ops, tensor = NativeBackend(n_threads), Ops(), _weight(self.FORMAT, side, side)
        self.n_layers = -(-READ_BYTES // (n_matrices * tensor.n_bytes))
        self.n_bytes = self.n_layers * n_matrices * tensor.n_bytes
        norm, spec = Norm(np.ones(side, np.float32), 1e-5), KVSpec("full", side // dim, dim, dim)
        x = ops.embed(_matrix(backend, KV_BLOCK, side))
        for _ in range(self.n_layers):
            wq, wk, wv, wo, gate, up, down = (backend.matrix(tensor) for _ in range(n_matrices))
            q, k, v = ops.linear(x, [wq, wk, wv], norm=norm)
            x = ops.linear_add(ops.attend(q, k, v, spec, rope=None, scale=0.1), wo, x)
            x = ops.linear_add(ops.gated_linear(x, gate, up, norm=norm), down, x)
        ops.head(x, _matrix(backend, KV_BLOCK, side))
        self._program = backend.compile(ops)
        self._kv = self._program.new_kv(1)

    def decode(self) -> None:
        self._program.run(_batch(1), self._kv)


def _weight(name: str, n_rows: int, n_cols: int) -> QTensor:
    fmt = FORMATS[name]
    scales = np.ones((n_rows, n_cols // F8_BLOCK), np.float32) if name == "F8_E4M3" else None
    data = np.full((n_rows, fmt.row_bytes(n_cols)), _BYTE, np.uint8)
    if name == "MXFP4":
        data.view(fmt.layout)["e"] = 120  # 2^-7; 2^-67 would soon leave what float32 computes quickly
    return QTensor(fmt, (n_rows, n_cols), data, scales)


def _matrix(backend: NativeBackend, n_rows: int, n_cols: int) -> Matrix:
    return backend.matrix(_weight("BF16", n_rows, n_cols))


def _batch(n_tokens: int, start: int = 0) -> Batch:
    """One sequence's tokens from `start`, logits of the last."""
    n_blocks = -(-(start + n_tokens) // KV_BLOCK)
    return Batch(
        tokens=np.arange(n_tokens, dtype=np.int32) % KV_BLOCK,
        positions=np.arange(start, start + n_tokens, dtype=np.int32),
        seq_starts=np.array([0, n_tokens], np.int32),
        block_table=np.arange(n_blocks, dtype=np.int32)[None],
        logit_rows=np.array([n_tokens - 1], np.int32),
    )


def _typical(runs: Mapping[str, Callable[[], None]], n_rounds: int) -> dict[str, float]:
    """The median seconds of each, all run once in every round, after a round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}
