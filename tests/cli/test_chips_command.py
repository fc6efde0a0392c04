"""`freehold chips`: the table, one part's page, filters, --json, and what is refused."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from freehold.hardware.chips import load_chips


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def names(freehold: Run, *options: str) -> list[str]:
    return [facts["name"] for facts in json.loads(freehold("chips", "--json", *options).out)]


def line(text: str, start: str) -> str:
    """The line that begins so, every run of spaces made one."""
    rows = (f"{' '.join(row.split())} " for row in text.splitlines())
    return next(row for row in rows if row.startswith(start)).strip()


def test_the_table(freehold: Run) -> None:
    text = freehold("chips", "--on", "2026-02-01").out
    assert line(text, "maker") == "maker name GB GB/s bf16 fp8 int8 TPP PD rule"
    assert line(text, "NVIDIA H100 SXM5") == "NVIDIA H100 SXM5 80 3350 989 1979 1979 15831 19.4 3A090.a.1"
    assert line(text, "NVIDIA H20 ") == "NVIDIA H20 96 4000 148 296 296 2368 2.91 below, letter"
    assert line(text, "NVIDIA L40 ").endswith("3A090.b.1, NAC")
    assert line(text, "Huawei Ascend 910B4").endswith("4480 - (undecided)")
    assert line(text, "Kunlunxin P800") == "Kunlunxin P800 - - - - - - - (no figure)"
    assert "US export rules on 2026-02-01" in text
    assert "neither a classification nor legal advice" in " ".join(text.split())


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_table_fits_its_columns(freehold: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for day in ("2022-11-01", "2026-02-01"):
        assert max(map(len, freehold("chips", "--on", day).out.splitlines())) <= columns
    if columns == 80:
        text = freehold("chips").out
        assert max(map(len, text.splitlines())) <= 80
        assert line(text, "H20 ").endswith("2.91 letter")
        assert "B30A (rumoured)" in text


def test_every_page_fits_80_columns(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = freehold("chips", *load_chips()).out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("US export rules on") == len(load_chips())


def test_a_page_shows_the_arithmetic(freehold: Run) -> None:
    text = freehold("chips", "h20", "--on", "2026-02-01").out
    assert "H20 (NVIDIA, 2023)" in text
    assert line(text, "memory") == "memory 96 GB HBM3, 4000 GB/s"
    assert line(text, "TPP") == "TPP 148 x 10^12 bf16 operations/s x 16 bits = 2368"
    assert line(text, "PD") == "PD 2368 / 814 mm2 = 2.91"
    assert line(text, "3A090.a.2") == "3A090.a.2 no asks TPP >= 1600 and PD >= 5.92; PD is 2.91"
    assert line(text, "yes") == (
        "yes asks memory >= 1400 GB/s or I/O >= 1100 GB/s or memory + I/O >= 1700 GB/s; memory is 4000 GB/s,"
    )
    assert "US export rules on 2026-02-01: below 3A090, but a licence by letter" in text
    assert "TPP 2368 against 2400" in text
    assert "88 FR 73458" in text


def test_a_page_follows_the_day(freehold: Run) -> None:
    for day, words in (
        ("2022-01-01", "no rule yet"),
        ("2022-11-01", "below 3A090\n"),
        ("2023-10-25", "below 3A090, but a licence by letter"),
        ("2023-11-17", "3A090.a.1"),
    ):
        assert f"US export rules on {day}: {words}" in freehold("chips", "A800", "--on", day).out
    assert f"US export rules on {date.today()}: 3A090.a.1" in freehold("chips", "A800").out


def test_a_page_of_a_chinese_design_is_for_comparison(freehold: Run) -> None:
    text = freehold("chips", "910C", "--on", "2026-02-01").out
    assert "would be 3A090.a.1 if it were a US part" in text
    assert "General Prohibition 10" in text


def test_several_pages_and_several_meanings(freehold: Run) -> None:
    text = freehold("chips", "H20", "H200").out
    assert text.index("H20 (NVIDIA") < text.index("H200 SXM (NVIDIA")
    outcome = freehold("chips", "910b")
    assert "'910b' is the name of 3 parts" in outcome.err
    assert [word for word in ("910B2", "910B3", "910B4", "910C") if word in outcome.out] == ["910B2", "910B3", "910B4"]


def test_a_name_of_several_words_needs_no_quotes(freehold: Run) -> None:
    assert names(freehold, "H100", "PCIe") == ["H100 PCIe"]
    assert names(freehold, "rtx", "5090", "d") == ["RTX 5090 D (China)"]
    assert names(freehold, "H100", "H20") == ["H100 SXM5", "H20"]


def test_filters(freehold: Run) -> None:
    assert set(names(freehold, "--vendor", "moore")) == {"MTT S4000", "MTT S5000"}
    assert set(names(freehold, "--kind", "tpu", "--min-memory", "95")) == {"TPU v5p", "TPU v7 (Ironwood)"}
    on = ("--on", "2026-02-01")
    assert names(freehold, "--rule", "b.2", *on) == ["A40"]
    assert names(freehold, "--rule", "3A090.b", *on) == ["A40", "L40", "Instinct MI210"]
    assert set(names(freehold, "--rule", "letter", *on)) == {
        "H20",
        "RTX 5090 D (China)",
        "Instinct MI308X (China)",
        "Gaudi 3 HL-328 (China)",
    }
    assert names(freehold, "--rule", "Note 2", "--vendor", "qualcomm", *on) == ["Snapdragon X Elite (laptop)"]
    assert len(names(freehold, "--rule", "3A090", *on)) > 30


def test_sorting(freehold: Run) -> None:
    assert names(freehold, "--sort", "bandwidth")[:2] == ["GB200 (per GPU)", "GB300 (per GPU)"]
    assert names(freehold, "--sort", "name", "--vendor", "aws") == ["Inferentia2", "Trainium2"]
    by_rate = names(freehold, "--sort", "fp8", "--kind", "gpu")
    assert by_rate[0] == "Instinct MI355X"
    assert by_rate.index("T4") > by_rate.index("L4")  # no figure comes last


def test_json_says_all_in_base_units(freehold: Run) -> None:
    facts: dict[str, Any]
    (facts,) = json.loads(freehold("chips", "H20", "--on", "2026-02-01", "--json").out)
    assert facts["memory_bytes"] == 96e9
    assert facts["bandwidth_bytes_per_s"] == 4000e9
    assert facts["flops"] == {"bf16": 148e12, "fp16": 148e12, "fp8": 296e12, "int8": 296e12}
    assert facts["maker"]["class"] == "4A994.l"
    assert facts["export"]["verdict"] == "below 3A090"
    assert facts["export"]["by_letter"] is True
    assert facts["export"]["checks"][1]["conditions"][1] == {
        "what": "PD",
        "value": pytest.approx(2.909, abs=1e-3),
        "sign": ">=",
        "limit": 5.92,
        "met": False,
    }
    assert "legal advice" in facts["export"]["disclaimer"]


def test_a_user_file(freehold: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,die_mm2\nDCU K100-AI,700\n", "utf-8")
    text = freehold("chips", "K100-AI", "--user-file", str(path)).out
    assert "3136 / 700 mm2 = 4.48" in text
    assert "would be 3A090.b.1" in text
    assert "user file mine.csv" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("H21",), "did you mean H20"),
        (("--on", "yesterday"), "--on is 'yesterday'; expected a day such as 2023-10-25"),
        (("--on", "2023-02-30"), "--on is '2023-02-30'"),
        (("--vendor", "Cyrix"), "--vendor is 'Cyrix'; expected one of AMD, AWS"),
        (("--rule", "c.9"), "--rule is 'c.9'; expected 3A090, a.1"),
        (("--kind", "tpu", "--min-memory", "5000"), "none of 122 processors passes the filters"),
        (("--user-file", "none.csv"), "none.csv: no such file"),
    ],
)
def test_refusals(freehold: Run, options: tuple[str, ...], message: str) -> None:
    outcome = freehold("chips", *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
