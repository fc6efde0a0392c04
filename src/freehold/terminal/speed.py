"""The report of `freehold bench`, as plain data for --json and as text. Measures nothing itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from freehold import kernels
from freehold.benchmark import Measurement, Workload
from freehold.runtime import LocalModel
from freehold.terminal.console import human_bytes, table

Facts = dict[str, Any]


def describe_bench(model: LocalModel, work: Workload, result: Measurement, bandwidth: float, precision: str) -> Facts:
    """A benchmark's settings and results; rates in tokens per second, `bandwidth` in GB/s."""
    return {
        "model": model.name,
        "precision": precision,
        "rounded": model.rounded,
        "isa": kernels.isa(),
        "workload": dataclasses.asdict(work),
        "prefill_tokens_per_second": round(result.prefill, 1),
        "prefill_runs": [round(rate, 1) for rate in result.prefill_runs],
        "decode_tokens_per_second": round(result.decode, 1),
        "decode_runs": [round(rate, 1) for rate in result.decode_runs],
        "load_seconds": round(model.load_seconds, 3),
        "weight_bytes": model.plan.weight_bytes,
        "peak_memory_bytes": result.peak_bytes,
        "decode_bytes_per_step": result.bytes_per_step,
        "memory_bandwidth_gb_per_s": round(bandwidth, 1),
        "roofline_fraction": round(result.roofline(bandwidth), 3),
    }


def render_bench(facts: Facts) -> str:
    """`describe_bench` as text."""
    work, peak = facts["workload"], facts["peak_memory_bytes"]
    many = f", {work['batch']} sequences at once" if work["batch"] > 1 else ""
    median = f"; median of {work['n_runs']} runs" if work["n_runs"] > 1 else ""
    depth = f"at depth {work['depth']}"
    rows = [
        ("model", f"{facts['model']}, precision {facts['precision']}, kernels {facts['isa']}"),
        *([("weights", facts["rounded"])] if facts["rounded"] else []),
        ("prefill", f"{facts['prefill_tokens_per_second']} tok/s ({work['n_prefill']} tokens{many}{median})"),
        ("decode", f"{facts['decode_tokens_per_second']} tok/s ({work['n_decode']} tokens {depth}{many}{median})"),
        ("load", f"{facts['load_seconds']} s"),
        ("memory", f"{human_bytes(facts['weight_bytes'])} weights, peak {human_bytes(peak) if peak else 'not known'}"),
        ("roofline", _roofline(facts)),
    ]
    return table(rows)


def _roofline(facts: Facts) -> str:
    step, fraction = facts["decode_bytes_per_step"], facts["roofline_fraction"]
    beyond = "; above 100 % the weights come from a cache" if fraction > 1 else ""
    return (
        f"decode reads {human_bytes(step)} per step and reaches {100 * fraction:.0f} % of the "
        f"{facts['memory_bandwidth_gb_per_s']} GB/s measured here{beyond}"
    )
