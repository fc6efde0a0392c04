"""This machine as the planner's device: its rates, measured once with our own kernels and remembered.

Owns what is measured (reading and multiplying weights of each format, attention, the overhead of a layer), the file
that remembers it, and the Device made of it. Small synthetic products only; knows nothing of models' shapes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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

SIDE = 2048
READ_BYTES = 64 << 20
"""Of weights per format, so that most come from memory; a rate above the memory's own is a cache's."""
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
    key = f"{machine.cpu}; {machine.n_threads} threads; {kernels.isa()}; freehold {release}"
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
    """Measure all rates; the best of several runs each, since others may use the machine meanwhile."""
    start = time.perf_counter()
    bandwidth = 1e9 * max(kernels.measure_bandwidth(n_threads) for _ in range(3))
    read, product, grouped = {}, {}, {}
    for name in MEASURED:
        read[name], product[name], grouped[name] = _products(name, n_threads)
    kv_rate, attention = _attention(n_threads)
    overhead = _overhead(n_threads)
    seconds = time.perf_counter() - start
    return Calibration(key, bandwidth, read, product, grouped, kv_rate, attention, overhead, round(seconds, 1))


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


def _products(name: str, n_threads: int) -> tuple[float, float, float]:
    """Bytes/s that one token's products read, FLOP/s of PROMPT tokens, and of GROUP tokens."""
    tensor, backend = _weight(name, SIDE, SIDE), NativeBackend(n_threads)
    weights = [backend.matrix(tensor) for _ in range(max(N_MULTIPLIED, READ_BYTES // tensor.n_bytes))]
    every, few = _chain(backend, weights), _chain(backend, weights[:N_MULTIPLIED])
    kv = every.new_kv(PROMPT // KV_BLOCK)  # which no operation uses
    read = tensor.n_bytes * len(weights) / _best(lambda: every.run(_batch(1), kv), 7)
    flops = 2.0 * SIDE * SIDE * N_MULTIPLIED
    product = PROMPT * flops / _best(lambda: few.run(_batch(PROMPT), kv), 2)
    return read, product, GROUP * flops / _best(lambda: few.run(_batch(GROUP), kv), 4)


def _chain(backend: NativeBackend, weights: Sequence[Matrix]) -> NativeProgram:
    """Products, each of the one before it, normalised so that numbers stay of order 1."""
    ops, norm = Ops(), Norm(np.ones(SIDE, np.float32), 1e-5)
    x = ops.embed(_matrix(backend, KV_BLOCK, SIDE))
    for weight in weights:
        (x,) = ops.linear(x, [weight], norm=norm)
    ops.head(x, _matrix(backend, KV_BLOCK, SIDE))
    return backend.compile(ops)


def _attention(n_threads: int) -> tuple[float, float]:
    """Bytes/s of keys and values that one token reads, and FLOP/s of PROMPT tokens, at a depth of 4 PROMPT."""
    n_layers, n_heads, n_kv, dim = 4, 16, 4, 64
    backend, ops = NativeBackend(n_threads), Ops()
    x = ops.embed(_matrix(backend, KV_BLOCK, dim))
    spec = KVSpec("full", n_kv, dim, dim)
    for _ in range(n_layers):
        q, k, v = ops.linear(x, [_matrix(backend, n * dim, dim) for n in (n_heads, n_kv, n_kv)])
        out = ops.attend(q, k, v, spec, rope=None, scale=1 / dim)
        (x,) = ops.linear(
            out, [_matrix(backend, dim, n_heads * dim)], norm=Norm(np.ones(n_heads * dim, np.float32), 1.0)
        )
    ops.head(x, _matrix(backend, KV_BLOCK, dim))
    program = backend.compile(ops)
    kv, depth = program.new_kv(5 * PROMPT // KV_BLOCK), 4 * PROMPT
    for start in range(0, depth, PROMPT):
        program.run(_batch(PROMPT, start), kv)
    kv_bytes = n_layers * 2 * n_kv * dim * 2 * depth
    flops = n_layers * 4 * n_heads * dim * PROMPT * (depth - PROMPT / 2)
    one = _best(lambda: program.run(_batch(1, depth), kv), 9)
    many = _best(lambda: program.run(_batch(PROMPT, depth - PROMPT), kv), 3)
    return kv_bytes / one, flops / many


def _overhead(n_threads: int) -> float:
    """Seconds of a layer of next to no weights: its operations, and the waiting of the threads for each other."""
    n_layers, hidden, n_heads, dim = 16, 64, 4, 32
    backend, ops = NativeBackend(n_threads), Ops()
    norm, spec = Norm(np.ones(hidden, np.float32), 1e-5), KVSpec("full", n_heads, dim, dim)
    x = ops.embed(_matrix(backend, KV_BLOCK, hidden))
    for _ in range(n_layers):
        q, k, v = ops.linear(x, [_matrix(backend, n_heads * dim, hidden)] * 3, norm=norm)
        x = ops.linear_add(ops.attend(q, k, v, spec, rope=None, scale=0.1), _matrix(backend, hidden, n_heads * dim), x)
        gated = ops.gated_linear(x, *[_matrix(backend, 2 * hidden, hidden)] * 2, norm=norm)
        x = ops.linear_add(gated, _matrix(backend, hidden, 2 * hidden), x)
    ops.head(x, _matrix(backend, KV_BLOCK, hidden))
    program = backend.compile(ops)
    kv = program.new_kv(4)
    return _best(lambda: program.run(_batch(1), kv), 50) / n_layers


def _weight(name: str, n_rows: int, n_cols: int) -> QTensor:
    fmt = FORMATS[name]
    scales = np.ones((n_rows, n_cols // F8_BLOCK), np.float32) if name == "F8_E4M3" else None
    return QTensor(fmt, (n_rows, n_cols), np.full((n_rows, fmt.row_bytes(n_cols)), _BYTE, np.uint8), scales)


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


def _best(run: Callable[[], Any], n_runs: int) -> float:
    """The least seconds, after one run that is not counted."""
    run()
    least = math.inf
    for _ in range(n_runs):
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least
