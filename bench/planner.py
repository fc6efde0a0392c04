"""The planner against published measurements: fits the priors of each class of device, and writes the accuracy table.

usage: planner.py fit          print what hardware/devices.py must hold
       planner.py table        print the table of docs/planner.md
       planner.py write        put it there

The points are tests/golden/measured.csv. A class has two constants for decode, eta (of the bandwidth) and seconds per
layer, and one for prefill, eta_f (of the arithmetic), found by least absolute error of the logarithm. A spread is the
largest error of a point that is left out while the others are fitted: no point is judged by a fit that has seen it.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from freehold.hardware.chips import Chip, load_chips
from freehold.hardware.devices import PRIORS, DeviceClass, device_of
from freehold.hardware.estimate import ANY, Device, Interval, ModelShape, decode, prefill
from freehold.shapes import PlanFormat, shape_of_published
from freehold.weights.synth import SHAPES

ROOT = Path(__file__).resolve().parents[1]
POINTS, PAGE = ROOT / "tests" / "golden" / "measured.csv", ROOT / "docs" / "planner.md"
START, END = "<!-- accuracy: written by bench/planner.py -->", "<!-- end of accuracy -->"

ETAS = np.round(np.arange(0.30, 1.001, 0.02), 2)
OVERHEADS = np.round(np.arange(0, 401, 5) * 1e-6, 6)
ETA_FS = np.round(np.arange(0.04, 1.001, 0.02), 2)
UNIFIED = ("unified", "apu")
DECODE_CLASSES: Mapping[DeviceClass, tuple[str, ...]] = {
    "card": ("card",),
    "apple": ("apple",),
    "unified": UNIFIED,
    "apu": UNIFIED,
    "cpu": ("cpu",),
}
"""The classes whose points a class's decode is fitted to: others borrow."""
PREFILL_CLASSES: tuple[DeviceClass, ...] = ("card", "datacentre", "apple", "unified", "apu")
ENOUGH = 5
"""Points from which a class has an overhead of its own, and a spread that they tell."""


@dataclass(frozen=True)
class Point:
    """A published measurement and what the planner says of it. use: "decode", "long", "batch", "prefill" or "none"."""

    row: Mapping[str, str]

    @property
    def use(self) -> str:
        return self.row["use"]

    @property
    def device_class(self) -> DeviceClass:
        return cast(DeviceClass, self.row["device_class"])

    @property
    def shape(self) -> ModelShape:
        return _shape(self.row["model"], cast(PlanFormat, self.row["format"]))

    @property
    def batch(self) -> int:
        return int(self.row["batch"] or 1)

    @property
    def context(self) -> int:
        return int(self.row["context"])

    @property
    def decode(self) -> float | None:
        return float(self.row["decode_tok_s"]) if self.row["decode_tok_s"] and self.use != "prefill" else None

    @property
    def prefill(self) -> float | None:
        known = self.row["in_catalogue"] and self.row["prefill_tok_s"]
        return float(self.row["prefill_tok_s"]) if known else None

    @property
    def device(self) -> Device:
        count = int(self.row["count"])
        if self.row["in_catalogue"]:
            return device_of(load_chips()[self.row["chip"]], count)
        return device_of(_bare_chip(self), count)  # a part that the catalogue lacks, of which decode is all there is

    def predicted_decode(self) -> Interval:
        return decode(self.shape, self.device, self.context, self.batch).rate

    def predicted_prefill(self) -> Interval:
        return _prefill(self, self.device)


def points() -> list[Point]:
    with POINTS.open(encoding="utf-8", newline="") as file:
        return [Point(row) for row in csv.DictReader(file)]


@cache
def _shape(model: str, to: PlanFormat) -> ModelShape:
    return shape_of_published(model, SHAPES[model], to)


def _bare_chip(point: Point) -> Chip:
    kind = {"card": "consumer", "cpu": "cpu"}[point.device_class]
    bandwidth = float(point.row["bandwidth_gb_per_s"]) * 1e9
    return Chip(
        vendor="", name=point.row["chip"], kind=kind, datacentre=False, bandwidth=bandwidth, flops={"bf16": 1e18}
    )


def _prefill(point: Point, device: Device) -> Interval:
    n_tokens, start = int(point.row["prefill_tokens"]), int(point.row["prefill_start"])
    if point.use == "prefill":  # a device of many that share the experts, whose reading does not count
        device = replace(device, read_rates={ANY: math.inf}, overhead=0.0)
    return prefill(point.shape, device, n_tokens, start).rate


def fit_decode(found: Sequence[Point]) -> tuple[float, float, list[float]]:
    """eta, seconds per layer, and by how much (|log|) each point is missed by a fit to the others."""
    reads, layers, times = [], [], []
    for point in found:
        shape, device = point.shape, replace(point.device, read_rates={ANY: 1.0}, kv_rate=1.0)
        reads.append((device.read_seconds(shape.read(1)) + shape.kv_read(point.context)) / _bandwidth(point))
        layers.append(shape.n_layers)
        times.append(1 / (point.decode or math.nan))
    overheads = OVERHEADS if len(found) >= ENOUGH else OVERHEADS[:1]
    at_rate = np.array(reads) / ETAS[:, None, None]  # [etas, overheads, points]
    errors = np.abs(np.log((at_rate + np.array(layers) * overheads[:, None]) / np.array(times)))
    eta, overhead = _best(errors)
    left_out = [float(errors[(*_best(np.delete(errors, i, axis=2)), i)]) for i in range(len(found))]
    return float(ETAS[eta]), float(overheads[overhead]), left_out if len(found) >= ENOUGH else []


def fit_prefill(found: Sequence[Point]) -> tuple[float, list[float]]:
    """eta_f, and the misses as above."""
    errors = np.array([[_prefill_error(point, eta) for point in found] for eta in ETA_FS])[:, None, :]
    best = _best(errors)[0]
    left_out = [float(errors[(*_best(np.delete(errors, i, axis=2)), i)]) for i in range(len(found))]
    return float(ETA_FS[best]), left_out if len(found) > 1 else []


def _prefill_error(point: Point, eta: float) -> float:
    device, known = point.device, PRIORS[point.device_class].eta_f
    rates = {name: rate * eta / known for name, rate in device.product_rates.items()}
    device = replace(device, product_rates=rates, attention_rate=device.attention_rate * eta / known)
    return abs(math.log(_prefill(point, device).mid / (point.prefill or math.nan)))


def _best(errors: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Of errors [.., .., points], where their mean is least; of equals the first."""
    mean = np.round(errors.mean(axis=2), 6)
    row, column = np.unravel_index(int(mean.argmin()), mean.shape)
    return int(row), int(column)


def _bandwidth(point: Point) -> float:
    return point.device.kv_rate / PRIORS[point.device_class].eta


@dataclass(frozen=True)
class Fit:
    """What PRIORS must hold of a class; None where there is nothing to fit, or too little."""

    eta: float | None = None
    overhead: float | None = None
    decode_spread: float | None = None
    n_decode: int = 0
    eta_f: float | None = None
    prefill_spread: float | None = None
    n_prefill: int = 0


def fits() -> dict[DeviceClass, Fit]:
    found: dict[DeviceClass, Fit] = {}
    for kind, together in DECODE_CLASSES.items():
        chosen = [point for point in points() if point.device_class in together and point.row["in_fit"]]
        eta, overhead, misses = fit_decode(chosen)
        found[kind] = Fit(eta, overhead, _spread(misses), len(chosen))
    for kind in PREFILL_CLASSES:
        chosen = [point for point in points() if point.device_class == kind and point.prefill]
        eta_f, misses = fit_prefill(chosen)
        spread = _spread(misses)
        found[kind] = replace(found.get(kind, Fit()), eta_f=eta_f, prefill_spread=spread, n_prefill=len(chosen))
    return found


def _spread(misses: Sequence[float]) -> float | None:
    """The largest miss as a factor, up to the next 0.05."""
    return math.ceil(round(math.exp(max(misses)) * 20, 6)) / 20 if misses else None


def judged() -> Iterator[tuple[Point, str, float, Interval]]:
    """Every figure that the planner predicts: the point, "decode" or "prefill", the rate measured, and predicted."""
    for point in points():
        if point.use == "none":
            continue
        if point.decode is not None:
            yield point, "decode", point.decode, point.predicted_decode()
        if point.prefill is not None:
            yield point, "prefill", point.prefill, point.predicted_prefill()


def error(measured: float, predicted: Interval) -> float:
    """How far the expected rate is from the measured one, as a part of it."""
    return abs(predicted.mid / measured - 1)


GROUPS = {
    "decode, one stream, short context": ("decode", ("decode",)),
    "decode, one stream, 4,096 tokens or more": ("decode", ("long",)),
    "decode, several streams": ("decode", ("batch",)),
    "prefill": ("prefill", ("decode", "long", "batch", "prefill")),
}


def table() -> str:
    """The accuracy section of docs/planner.md."""
    rows = list(judged())
    lines = ["| | points | median error | inside the interval |", "| --- | --- | --- | --- |"]
    for title, (what, uses) in GROUPS.items():
        chosen = [
            (measured, predicted) for point, kind, measured, predicted in rows if kind == what and point.use in uses
        ]
        inside = sum(measured in predicted for measured, predicted in chosen)
        median = statistics.median(error(*one) for one in chosen)
        lines.append(f"| {title} | {len(chosen)} | {100 * median:.0f} % | {inside} of {len(chosen)} |")
    lines += ["", "Outside the interval:", ""]
    lines += ["| model | on | what | measured | expected | reason |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_missed(*row) for row in rows if row[2] not in row[3]]
    lines += ["", "Not predicted:", "", "| model | on | reason |", "| --- | --- | --- |"]
    lines += [_left_out(point) for point in points() if point.use == "none"]
    return "\n".join(lines)


def _missed(point: Point, what: str, measured: float, predicted: Interval) -> str:
    expected = f"{predicted.low:.4g}-{predicted.high:.4g}"
    where = f"{point.row['chip']}, {point.row['engine']}"
    return (
        f"| {point.row['model']} {point.row['published_format']} | {where} | {what} | {measured:.4g} | {expected} | "
        f"{point.row['note'] or 'not known'} |"
    )


def _left_out(point: Point) -> str:
    model = f"{point.row['model']} {point.row['published_format']}"
    return f"| {model} | {point.row['chip']}, {point.row['engine']} | {point.row['note']} |"


def write() -> None:
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(START)
    PAGE.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if action == "fit":
        for kind, fit in fits().items():
            print(kind, fit)
    elif action == "table":
        print(table())
    elif action == "write":
        write()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
