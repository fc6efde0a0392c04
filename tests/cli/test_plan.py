"""`freehold plan`: what a user sees, what --json holds, what is refused. This machine's rates are given here."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from freehold import calibration
from freehold.calibration import MEASURED, Calibration


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine of round rates, with plenty of memory; the list has a key for each time that it was measured."""
    keys: list[str] = []

    def measure(n_threads: int, key: str = "") -> Calibration:
        keys.append(key)
        read, product, grouped = (dict.fromkeys(MEASURED, rate) for rate in (3e10, 1e12, 5e11))
        return Calibration(key, 3e10, read, product, grouped, 3e10, 1e12, 1e-5)

    monkeypatch.setattr(calibration, "measure", measure)
    return keys


def planned(freehold: Run, *args: str) -> dict[str, Any]:
    outcome = freehold("plan", *args, "--json")
    assert outcome.status == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_this_machine_is_measured_once_and_remembered(
    freehold: Run, measured: list[str], store_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "2G")  # or the text changes with what others leave
    first = freehold("plan", "qwen3-0.6b")
    assert "measuring this machine once" in first.err
    assert freehold("plan", "qwen3-0.6b").out == first.out
    assert len(measured) == 1
    freehold("plan", "qwen3-0.6b", "--recalibrate")
    assert len(measured) == 2
    kept = store_home / "cache" / "calibration.json"
    for damage in ("", "[]", '{"key": 1}', kept.read_text().replace("30000000000.0", "-1.0")):
        kept.write_text(damage)
        assert freehold("plan", "qwen3-0.6b").status == 0
    assert len(measured) == 6


def test_a_model_on_a_chip(freehold: Run, measured: list[str]) -> None:
    found = planned(freehold, "gpt-oss-120b", "--chip", "H100 SXM5")
    (plan,) = found["plans"]
    assert not measured
    assert (plan["device"], plan["count"], plan["fits"]["verdict"]) == ("H100 SXM5", 1, "PASS")
    assert plan["fits"]["need_bytes"][1] <= plan["fits"]["usable_bytes"][0]
    assert plan["fits"]["peak_bytes"] is None
    rate = plan["decode"]["tokens_per_second"]
    assert rate["low"] < rate["expected"] < rate["high"]
    assert plan["decode"]["limit"] in plan["decode"]["seconds"]
    assert {change["what"] for change in found["changes"]} >= {"in q8_0", "with 8 sequences at once"}


def test_text_is_readable_at_80_columns(freehold: Run) -> None:
    for args in (
        ("gpt-oss-120b", "--chip", "H100 SXM5"),
        ("qwen3-30b-a3b", "--chip", "RTX 5070"),
        ("deepseek-r1", "gpt-oss-120b", "--chips", "H20,H200,910C"),
        ("llama-3.1-8b", "--chip", "EPYC 9654"),
        (),
        ("gpt-oss-20b",),
    ):
        outcome = freehold("plan", *args)
        assert outcome.status == 0, outcome.err
        assert max(map(len, outcome.out.splitlines())) <= 80, args


def test_the_restricted_part_keeps_decode_and_loses_prefill(freehold: Run) -> None:
    out = freehold("plan", "gpt-oss-120b", "--chips", "H20,H200").out
    assert "H20: decode 9" in out
    assert "keeps decode, loses prefill" in out


def test_what_does_not_fit_one_says_how_many_it_takes(freehold: Run) -> None:
    (plan,) = planned(freehold, "qwen3-30b-a3b", "--chip", "RTX 5070")["plans"]
    assert plan["fits"]["verdict"] == "FAIL"
    assert plan["count"] == plan["count_needed"] == 2
    assert "FAIL on one" in freehold("plan", "qwen3-30b-a3b", "--chip", "RTX 5070").out


def test_what_fits_nowhere_has_no_speed(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "1G")
    out = freehold("plan", "gpt-oss-20b").out
    assert "FAIL" in out
    assert "tok/s" not in out


def test_without_a_model_it_ranks_what_fits(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "6G")
    found = planned(freehold)
    assert found["not_fitting"] > 10
    assert all(plan["fits"]["verdict"] == "PASS" for plan in found["plans"])
    assert all(plan["fits"]["peak_bytes"][0] < plan["fits"]["need_bytes"][0] for plan in found["plans"])
    comfortable = [p for p in found["plans"] if p["decode"]["tokens_per_second"]["expected"] >= 8]
    assert [p["parameters"] for p in comfortable] == sorted((p["parameters"] for p in comfortable), reverse=True)


def test_a_roofline(freehold: Run, tmp_path: Path) -> None:
    path = tmp_path / "roof.svg"
    freehold("plan", "gpt-oss-120b", "--chips", "H20,H200", "--plot", str(path))
    picture = ET.parse(path).getroot()
    kinds = [element.tag.rpartition("}")[2] for element in picture]
    assert (kinds.count("circle"), kinds.count("polyline")) == (2, 2)
    for circle in (element for element in picture if element.tag.endswith("circle")):
        assert 0 <= float(circle.attrib["cx"]) <= 860
        assert 0 <= float(circle.attrib["cy"]) <= 520
    assert "ends with .svg" in freehold("plan", "smollm2", "--chip", "H20", "--plot", str(tmp_path / "a.png")).err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("gpt-oss-21b", "--chip", "H20"), "did you mean gpt-oss-20b"),
        (("smollm2", "--chip", "H21"), "no processor 'H21'"),
        (("smollm2", "--chip", "PPU"), "is not public"),
        (("smollm2", "--chip", "H20", "--context", "9000"), "expected 1 to 8192"),
        (("gpt-oss-20b", "--chip", "H20", "--format", "int4"), "expected one of published, q8_0"),
        (("--chip", "H20,H200"), "name a model, or one part"),
        (("smollm2", "--chip", ","), "names no part"),
    ],
)
def test_refusals(freehold: Run, args: tuple[str, ...], says: str) -> None:
    outcome = freehold("plan", *args)
    assert outcome.status == 2
    assert says in outcome.err
