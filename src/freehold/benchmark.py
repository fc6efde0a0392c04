"""How fast a loaded model is here, and how much of the memory's speed it uses.

Owns the measuring: through the engine, as any request goes, with random prompts that no cache has seen, medians of
several runs. Knows no command line. Decode's roofline: each step must read the weights once, and each sequence's keys
and values up to its position, at no more than the memory's bandwidth.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freehold.budget import kv_bytes_per_token
from freehold.core import KV_BLOCK, SamplingParams
from freehold.engine import Timings
from freehold.errors import RequestError, ResourceError
from freehold.runtime import LocalModel


@dataclass(frozen=True)
class Workload:
    """What to measure: prefill of `n_prefill` tokens; decode of `n_decode` tokens after a prompt of `depth`.

    Both for `batch` sequences at once, `n_runs` times each, after one run that is not counted.
    """

    n_prefill: int = 512
    n_decode: int = 64
    depth: int = 512
    batch: int = 1
    n_runs: int = 3

    def __post_init__(self) -> None:
        for name, least in (("n_prefill", 1), ("n_decode", 2), ("depth", 1), ("batch", 1), ("n_runs", 1)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} is {getattr(self, name)}; expected a whole number >= {least}")

    @property
    def context(self) -> int:
        """Tokens one sequence must be able to hold."""
        return max(self.n_prefill + 1, self.depth + self.n_decode + 1)


@dataclass(frozen=True)
class Measurement:
    """Medians over the runs. Rates are tokens per second of all sequences together.

    `bytes_per_step` is what a decode step cannot avoid reading: every matrix of weights once, and the KV cache of every
    sequence; `steps_per_second` is how often it does. `peak_bytes` is the most memory the process had resident, None
    where the system does not say.
    """

    prefill: float
    prefill_runs: tuple[float, ...]
    decode: float
    decode_runs: tuple[float, ...]
    bytes_per_step: int
    steps_per_second: float
    peak_bytes: int | None

    def roofline(self, bandwidth: float) -> float:
        """The part of `bandwidth`, in GB/s, that decode reaches; above 1 the weights come from a cache."""
        return self.bytes_per_step * self.steps_per_second / (bandwidth * 1e9)


def measure(model: LocalModel, work: Workload, *, seed: int = 0) -> Measurement:
    """Run the workload. Load `model` for `work.context` tokens and `work.batch` conversations, without prefix cache."""
    if work.context > model.max_context:
        raise RequestError(
            f"this workload needs a context of {work.context} tokens; {model.name} was loaded with {model.max_context}"
        )
    n_held, n_needed = model.plan.n_blocks, work.batch * -(-work.context // KV_BLOCK)
    if n_held < n_needed:  # sequences would wait for each other, and the waiting would be measured
        raise ResourceError(
            f"{work.batch} sequences of {work.context} tokens need {n_needed} KV blocks, but memory allows {n_held}; "
            f"measure a smaller --batch or --depth"
        )
    rng = np.random.default_rng(seed)
    prefill, decode = [], []
    for _ in range(work.n_runs + 1):
        timings = _run(model, rng, work.n_prefill, 1, work.batch)
        prefill.append(work.batch * work.n_prefill / max(each.queue_seconds + each.prefill_seconds for each in timings))
        timings = _run(model, rng, work.depth, work.n_decode + 1, work.batch)
        decode.append(sum(work.n_decode / each.decode_seconds for each in timings))
    prefill, decode = prefill[1:], decode[1:]
    rate = statistics.median(decode)
    bytes_per_step = model.step_bytes + work.batch * _kv_bytes(model, work.depth + work.n_decode // 2)
    return Measurement(
        prefill=statistics.median(prefill),
        prefill_runs=tuple(prefill),
        decode=rate,
        decode_runs=tuple(decode),
        bytes_per_step=bytes_per_step,
        steps_per_second=rate / work.batch,
        peak_bytes=peak_memory(),
    )


def peak_memory() -> int | None:
    """Most bytes this process has had resident so far; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _run(model: LocalModel, rng: np.random.Generator, n_prompt: int, n_tokens: int, batch: int) -> list[Timings]:
    """Generate `n_tokens` after each of `batch` random prompts, all at once; the engine's clock tells the times.

    The engine shares prefill evenly, so that sequences of one length begin to decode, and end, together.
    """
    params = SamplingParams(max_tokens=n_tokens)  # no stop ids: every sequence runs to its limit
    prompts = [rng.integers(0, model.vocab_size, n_prompt).tolist() for _ in range(batch)]
    generations = [model.engine.submit(prompt, params) for prompt in prompts]
    for generation in generations:
        for _ in generation:
            pass
    return [generation.timings for generation in generations]


def _kv_bytes(model: LocalModel, position: int) -> int:
    """KV bytes one sequence's step reads at `position`: windowed layers read their window only."""
    return sum(
        kv_bytes_per_token([spec], 2) * (position if spec.window is None else min(position, spec.window))
        for spec in model.kv_specs
    )
