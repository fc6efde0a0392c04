"""The planner against published measurements (tests/golden/measured.csv), and its priors against their fit."""

from __future__ import annotations

import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

from freehold.hardware.devices import PRIORS

BENCH = Path(__file__).resolve().parents[2] / "bench" / "planner.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(BENCH), run_name="planner_bench")


@pytest.fixture(scope="module")
def judged(bench: dict[str, Any]) -> list[Any]:
    return list(bench["judged"]())


def test_every_point_is_judged_or_says_why_not(bench: dict[str, Any]) -> None:
    points = bench["points"]()
    assert len(points) == 66
    assert all(point.row["note"] for point in points if point.use == "none")
    assert all(point.row["source"] for point in points)


def test_single_stream_decode(bench: dict[str, Any], judged: list[Any]) -> None:
    rows = [row for row in judged if row[1] == "decode" and row[0].use in ("decode", "long")]
    inside = [measured in predicted for _, _, measured, predicted in rows]
    assert len(rows) >= 45
    assert statistics.median(bench["error"](measured, predicted) for _, _, measured, predicted in rows) <= 0.15
    assert sum(inside) >= 0.9 * len(inside)


def test_long_contexts_lie_inside(judged: list[Any]) -> None:
    rows = [row for row in judged if row[1] == "decode" and row[0].use == "long"]
    assert len(rows) == 8
    assert all(measured in predicted for _, _, measured, predicted in rows)


def test_batches_lie_inside_but_for_the_one_that_is_listed(judged: list[Any]) -> None:
    rows = [row for row in judged if row[0].use == "batch" and row[1] == "decode"]
    missed = [point.row["chip"] for point, _, measured, predicted in rows if measured not in predicted]
    assert len(rows) == 3
    assert missed == ["Ascend 910B2"]


def test_prefill_lies_inside(judged: list[Any]) -> None:
    rows = [row for row in judged if row[1] == "prefill"]
    assert len(rows) >= 25
    assert all(measured in predicted for _, _, measured, predicted in rows)


def test_the_priors_are_what_the_points_give(bench: dict[str, Any]) -> None:
    for kind, fit in bench["fits"]().items():
        prior = PRIORS[kind]
        given = {
            "eta": prior.eta,
            "overhead": prior.overhead,
            "decode_spread": prior.decode_spread,
            "eta_f": prior.eta_f,
            "prefill_spread": prior.prefill_spread,
        }
        for name, value in given.items():
            if (fitted := getattr(fit, name)) is not None:
                assert value == pytest.approx(fitted), f"{kind}: {name}"


def test_the_page_has_the_table(bench: dict[str, Any]) -> None:
    page = bench["PAGE"].read_text("utf-8")
    assert f"{bench['START']}\n\n{bench['table']()}\n\n{bench['END']}" in page, "run python bench/planner.py write"
