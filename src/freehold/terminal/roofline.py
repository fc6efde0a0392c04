"""A roofline as SVG: what a device's memory and arithmetic allow, and where a model's decode and prefill lie on it.

Owns the picture. Horizontal: operations per byte of weights and KV cache read; vertical: operations per second that the
estimate expects. Both axes are logarithmic. Written by hand: a plotting library would weigh more than all of Freehold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from freehold.errors import RequestError, ResourceError
from freehold.hardware.estimate import Estimate
from freehold.planner import Plan

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 80, 250, 40, 60
COLOURS = ("#1b6ca8", "#c8502d", "#3a7d44", "#7b4ea3", "#b8860b", "#00808a", "#a83279", "#555555")
"""Told apart by people who see no red or no green, too, in this order; lines also carry their names."""


@dataclass(frozen=True)
class Point:
    """operations per byte, operations per second."""

    x: float
    y: float


@dataclass(frozen=True)
class _Series:
    label: str
    ridge: Point
    decode: Point
    prefill: Point


def write_roofline(plans: Sequence[Plan], path: Path) -> None:
    """Write the picture. RequestError for another kind of file than .svg, ResourceError where it cannot be written."""
    if path.suffix.lower() != ".svg":
        raise RequestError(f"--plot writes SVG; name a file that ends with .svg instead of {path.name[:80]!r}")
    try:
        path.write_text(render([_series(plan) for plan in plans]), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error


def render(all_series: Sequence[_Series]) -> str:
    """The SVG's text."""
    points = [point for series in all_series for point in (series.ridge, series.decode, series.prefill)]
    low_x, high_x = _decades([point.x for point in points])
    low_y, high_y = _decades([point.y for point in points])
    frame = _Frame(low_x, high_x, low_y, high_y)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *frame.axes(),
    ]
    for index, series in enumerate(all_series):
        lines += _drawn(series, frame, COLOURS[index % len(COLOURS)], index)
    return "\n".join([*lines, "</svg>", ""])


def work(now: Estimate) -> tuple[Point, Point]:
    """Where decode and prefill lie: operations per byte read, and per second."""
    model = now.model
    decode_flops = now.batch * (2 * model.n_active + model.attention_flops(now.context))
    decode_bytes = sum(part.n_bytes for part in model.read(now.batch).values()) + now.batch * model.kv_read(now.context)
    size = min(now.device.chunk, now.context)
    multiplied = model.n_active - model.head[1]
    prefill_flops = size * (2 * multiplied + model.attention_flops(now.context / 2, prompt=True))
    prefill_bytes = sum(part.n_bytes for part in model.read(size).values()) + model.kv_read(now.context / 2)
    per_token = prefill_flops / size
    return (
        Point(decode_flops / decode_bytes, decode_flops * now.decode.rate.mid / now.batch),
        Point(prefill_flops / prefill_bytes, per_token * now.prefill.rate.mid),
    )


def _series(plan: Plan) -> _Series:
    now = plan.estimate
    device = now.device
    # Effective rates for this model: formats differ, so the roof is what its own weights allow.
    weights = now.model.read(1)
    rate = sum(part.n_bytes for part in weights.values()) / device.read_seconds(weights)
    peak = 2 * now.model.n_active / device.product_seconds(now.model)
    count = f"{device.count} x " if device.count > 1 else ""
    decode, prefill = work(now)
    return _Series(f"{now.model.name} on {count}{device.name}", Point(peak / rate, peak), decode, prefill)


class _Frame:
    """From numbers to places on the picture; bounds are powers of ten."""

    def __init__(self, low_x: int, high_x: int, low_y: int, high_y: int) -> None:
        self.x, self.y = (low_x, high_x), (low_y, high_y)

    def at(self, point: Point) -> tuple[float, float]:
        along = (math.log10(point.x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(point.y) - self.y[0]) / (self.y[1] - self.y[0])
        return round(LEFT + along * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def axes(self) -> Iterator[str]:
        for power in range(self.x[0], self.x[1] + 1):
            x, bottom = self.at(Point(10.0**power, 10.0 ** self.y[0]))
            yield f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}" stroke="#ddd"/>'
            yield f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{10.0**power:g}</text>'
        for power in range(self.y[0], self.y[1] + 1):
            left, y = self.at(Point(10.0 ** self.x[0], 10.0**power))
            yield f'<line x1="{left}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>'
            yield f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{_rate(10.0**power)}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">operations per byte read</text>'
        yield f'<text x="{LEFT - 60}" y="{TOP - 18}">operations per second, as expected</text>'
        yield f'<text x="{WIDTH - RIGHT + 16}" y="{TOP - 18}">circle: decode, square: prefill</text>'


def _drawn(series: _Series, frame: _Frame, colour: str, index: int) -> Iterator[str]:
    slope = series.ridge.y / series.ridge.x
    low_x, high_x = 10.0 ** frame.x[0], 10.0 ** frame.x[1]
    start_x = max(low_x, 10.0 ** frame.y[0] / slope)  # where the roof enters the picture
    corners = [Point(start_x, start_x * slope), series.ridge, Point(high_x, series.ridge.y)]
    path = " ".join(f"{x},{y}" for x, y in map(frame.at, corners))
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    (x, y), (square_x, square_y) = frame.at(series.decode), frame.at(series.prefill)
    yield f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>'
    yield f'<rect x="{square_x - 5}" y="{square_y - 5}" width="10" height="10" fill="{colour}"/>'
    legend_x, legend_y = WIDTH - RIGHT + 16, TOP + 10 + 20 * index
    yield f'<path d="M{legend_x} {legend_y}h18" stroke="{colour}"/>'
    label = series.label if len(series.label) <= 34 else series.label[:31] + "..."
    yield f'<text x="{WIDTH - RIGHT + 40}" y="{legend_y + 4}">{escape(label)}</text>'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _rate(flops: float) -> str:
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= size:
            return f"{flops / size:g} {unit}"
    return f"{flops:g}"
