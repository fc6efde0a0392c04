"""From a chip of the catalogue to a Device of the estimator: what runtimes reach of the figures on its data sheet.

Owns the classes of chips and their priors. Those are fitted to published measurements, one set per class, by
`python bench/planner.py`, which a test runs again; where a class has too few points it says so. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from freehold.errors import UnsupportedError
from freehold.hardware.chips import Chip
from freehold.hardware.estimate import ANY, Device

DeviceClass = Literal["datacentre", "accelerator", "card", "apple", "unified", "apu", "cpu"]
"""datacentre: GPUs sold for it. accelerator: NPUs and TPUs. card: consumer and workstation GPUs. apple, unified
(NVIDIA's) and apu (others'): a GPU on the processor's memory. cpu: no GPU at all."""


@dataclass(frozen=True)
class Prior:
    """What a class reaches. eta: of the bandwidth, in decode; overhead: seconds per layer; eta_f: of the arithmetic, in
    prefill. The spreads are factors either way. decode_points, prefill_points: measurements behind them; 0 means that
    they are borrowed or assumed.
    """

    eta: float
    overhead: float
    decode_spread: float
    decode_points: int
    eta_f: float
    prefill_spread: float
    prefill_points: int
    reserve: tuple[float, float]
    usable: tuple[float, float]
    chunk: int = 2048


_CARD = Prior(0.76, 40e-6, 1.35, 15, 0.42, 1.65, 5, reserve=(0.6e9, 2.1e9), usable=(1.0, 1.0))
_CENTRE = replace(_CARD, decode_points=0, eta_f=0.44, prefill_spread=2.3, prefill_points=3, usable=(1.0, 0.9))
_UNIFIED = Prior(0.84, 45e-6, 1.25, 9, 0.36, 2.0, 9, reserve=(0.3e9, 2.1e9), usable=(0.95, 0.75))
PRIORS: Mapping[DeviceClass, Prior] = MappingProxyType(
    {
        "card": _CARD,
        "datacentre": _CENTRE,
        "accelerator": replace(_CENTRE, decode_spread=2.0, prefill_points=0),
        "apple": Prior(1.0, 230e-6, 1.35, 10, 0.38, 1.9, 3, reserve=(0.3e9, 1.5e9), usable=(0.92, 0.75)),
        "unified": _UNIFIED,
        "apu": replace(_UNIFIED, eta_f=0.1, prefill_spread=2.1, prefill_points=4),
        "cpu": Prior(0.58, 0.0, 1.5, 2, 0.35, 2.5, 0, reserve=(0.2e9, 1.5e9), usable=(1.0, 0.0), chunk=512),
    }
)
"""Reserves: a runtime's buffers and its context on the device. Usable: from what might be had, after changing settings,
to what is there by default; vLLM takes 90 %; a CPU's memory is whatever was built in, hence never sure."""

_APPLE_SMALL = 36e9, 0.65  # of so many bytes and less, macOS lets the GPU have about this part by default
_PCIE = 25e9


def class_of(chip: Chip) -> DeviceClass:
    """Which class a chip belongs to."""
    if chip.kind in ("npu", "tpu"):
        return "accelerator"
    if chip.kind == "apu":
        return {"Apple": "apple", "NVIDIA": "unified"}.get(chip.vendor, "apu")  # type: ignore[return-value]
    if chip.kind == "cpu":
        return "cpu"
    return "datacentre" if chip.datacentre else "card"


def device_of(chip: Chip, count: int = 1) -> Device:
    """A chip, or `count` of them, as the estimator takes it.

    UnsupportedError where the catalogue lacks the bandwidth or every rate that prefill could use.
    """
    kind = class_of(chip)
    bf16 = chip.flops.get("bf16") or chip.flops.get("fp16")
    eight = max(chip.flops.get("fp8", 0.0), chip.flops.get("int8", 0.0))
    if chip.bandwidth is None or not (bf16 or eight):
        missing = "memory bandwidth" if chip.bandwidth is None else "rate of arithmetic"
        raise UnsupportedError(
            f"{chip.name}: its {missing} is not public, so there is nothing to compute with; `freehold chips` says how "
            f"to add figures of your own"
        )
    bf16 = bf16 or eight / 2
    prior = PRIORS[kind]
    usable = prior.usable
    if kind == "apple" and chip.memory_bytes and chip.memory_bytes <= _APPLE_SMALL[0]:
        usable = usable[0], _APPLE_SMALL[1]
    in_eight = chip.flops.get("fp8") or (chip.flops.get("int8") if kind == "accelerator" else None) or bf16
    return Device(
        name=chip.name,
        memory=chip.memory_bytes,
        read_rates={ANY: prior.eta * chip.bandwidth},
        product_rates={ANY: prior.eta_f * bf16, "F8_E4M3": prior.eta_f * in_eight},
        kv_rate=prior.eta * chip.bandwidth,
        attention_rate=prior.eta_f * bf16,
        overhead=prior.overhead,
        decode_spread=prior.decode_spread,
        prefill_spread=prior.prefill_spread,
        chunk=prior.chunk,
        reserve=prior.reserve,
        usable=usable,
        count=count,
        link=max(_PCIE, (chip.interconnect or 0.0) / 2),
        basis=kind,
        remarks=_remarks(chip, kind, prior),
    )


def _remarks(chip: Chip, kind: DeviceClass, prior: Prior) -> tuple[str, ...]:
    found = []
    if not prior.prefill_points:
        found.append("no public measurement of prefill on such parts: its interval is an assumption")
    if kind == "cpu":
        found.append("memory is what your machine has, not what the processor could take")
    if chip.confidence == "low":
        found.append("figures of low confidence")
    return tuple(found)
