"""Classification under the US export rules: parts made to stay below a rule, on the days around it; limits; doubts."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.hardware import export_dates as dates
from freehold.hardware.chips import Chip, find_chip, load_chips
from freehold.hardware.export_checks import Check, Condition
from freehold.hardware.export_rules import classify

DERIVED = Path(__file__).resolve().parents[1] / "golden" / "chips" / "derived.csv"
CHIPS = load_chips()
NOW = date(2026, 9, 1)


def part(tpp: float, density: float | None = None, **more: object) -> Chip:
    """A US data-centre part of this TPP (at int8), with a die that gives the density."""
    die = None if density is None else tpp / density
    chip = Chip(
        vendor="Google",
        name="part",
        kind="npu",
        datacentre=True,
        die_mm2=die,
        flops=MappingProxyType({"int8": tpp / 8e-12}),
    )
    return replace(chip, **more)  # type: ignore[arg-type] # fields of Chip


def rows() -> list[dict[str, str]]:
    with DERIVED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_every_part_falls_where_the_source_derives_it(row: dict[str, str]) -> None:
    result = classify(CHIPS[row["name"]], NOW)
    words = {
        "below 3A090.a/.b": "below 3A090",
        "undetermined": "undetermined",
        "unknown": "no compute figure",
        "not classified": "not classified",
        "outside 3A090": "outside 3A090 (Note 2)",
    }
    text = row["derived"].removeprefix("PRC design, for comparison only: ")
    expected = next((verdict for word, verdict in words.items() if text.startswith(word)), text.partition(" (")[0])
    assert result.verdict == expected
    assert result.comparison_only == row["derived"].startswith("PRC design")
    assert result.by_notice == ("NAC" in row["derived"] or expected.startswith("3A090.b"))
    applies = {effect.rule: effect.applies for effect in result.effects}
    if row["case_by_case"]:
        assert applies[dates.REVIEW_2026] == (row["case_by_case"] == "yes")
    if row["letter"] and dates.LETTERS_2025 in applies:
        assert applies[dates.LETTERS_2025] == (row["letter"] == "yes")


def test_no_verdict_contradicts_a_maker() -> None:
    found = [classify(chip, NOW) for chip in CHIPS.values() if chip.maker_class]
    assert len(found) == 31
    assert [result.chip.name for result in found if result.maker_agrees is not True] == ["RTX 6000D (China)"]


@pytest.mark.parametrize(
    ("name", "day", "verdict", "by_letter"),
    [
        ("A800", "2022-10-06", "no rule yet", False),
        ("A100 80GB", "2022-10-07", "3A090 (2022)", False),
        ("A800", "2022-10-07", "below 3A090", False),
        ("A800", "2023-10-22", "below 3A090", False),
        ("A800", "2023-10-25", "below 3A090", True),  # the letter to NVIDIA, three weeks ahead of the rule
        ("A800", "2023-11-17", "3A090.a.1", False),
        ("H100", "2023-10-25", "3A090 (2022)", False),
        ("H800", "2023-10-22", "below 3A090", False),
        ("H800", "2023-10-23", "below 3A090", True),
        ("H800", "2023-11-17", "3A090.a.1", False),
        ("L40S", "2023-10-22", "below 3A090", False),
        ("L40S", "2023-10-23", "below 3A090", True),
        ("L40S", "2023-11-17", "3A090.a.1", False),
        ("L40", "2023-10-25", "below 3A090", False),
        ("L40", "2023-11-17", "3A090.b.1", False),
        ("MI250X", "2023-10-25", "3A090 (2022)", False),
        ("Gaudi 2", "2023-11-16", "3A090 (2022)", False),
        ("RTX 4090", "2023-10-25", "below 3A090", False),
        ("RTX 4090", "2023-11-17", "3A090.a.1", False),
        ("RTX 4090 D", "2023-11-16", "below 3A090", False),
        ("RTX 4090 D", "2023-11-17", "outside 3A090 (Note 2)", False),
        ("RTX 4090 D", "2025-04-09", "outside 3A090 (Note 2)", False),
        ("H20", "2023-11-16", "below 3A090", False),
        ("H20", "2023-11-17", "below 3A090", False),
        ("H20", "2025-04-08", "below 3A090", False),
        ("H20", "2025-04-09", "below 3A090", True),
        ("L20", "2023-11-17", "below 3A090", False),
        ("L20", "2025-04-09", "below 3A090", False),
        ("L2", "2023-11-17", "below 3A090", False),
        ("L2", "2025-04-09", "below 3A090", False),
        ("MI308X", "2025-04-08", "below 3A090", False),
        ("MI308X", "2025-04-09", "below 3A090", True),
        ("RTX 5090 D", "2025-04-08", "outside 3A090 (Note 2)", False),
        ("RTX 5090 D", "2025-04-09", "outside 3A090 (Note 2)", True),
        ("RTX 5090 D V2", "2025-08-15", "outside 3A090 (Note 2)", False),
        ("RTX 6000D", "2025-08-15", "no compute figure", False),
        ("HL-328", "2025-04-08", "no compute figure", False),
        ("HL-328", "2025-04-09", "no compute figure", True),
        ("L4", "2023-11-17", "3A090.a.2", False),
        ("A40", "2023-11-17", "3A090.b.2", False),
        ("A10", "2023-11-17", "below 3A090", False),
    ],
)
def test_parts_on_the_days_around_a_rule(name: str, day: str, verdict: str, by_letter: bool) -> None:
    result = classify(find_chip(name), date.fromisoformat(day))
    assert (result.verdict, result.by_letter) == (verdict, by_letter)


@pytest.mark.parametrize(
    ("name", "day", "licence"),
    [
        ("H200", "2026-01-14", "presumption of denial"),
        ("H200", "2026-01-15", "case by case"),
        ("MI325X", "2026-01-15", "case by case"),
        ("B200", "2026-01-15", "presumption of denial"),
        ("Gaudi 3", "2026-01-15", "presumption of denial"),
        ("RTX 4090", "2023-11-17", "Licence Exception NAC"),
        ("RTX 5090", "2025-05-01", "a letter of April 2025 may ask for one"),
        ("L40", "2023-11-17", "Licence Exception NAC"),
        ("H20", "2025-05-01", "licence by letter"),
        ("H20", "2024-05-01", "none under 3A090"),
        ("A100 80GB", "2022-11-01", "licence for China"),
        ("910C", "2026-05-01", "not an export from the US"),
        ("TPU v4", "2026-05-01", "cannot be told"),
        ("6980P", "2026-05-01", "cannot be told"),
    ],
)
def test_what_an_export_would_need(name: str, day: str, licence: str) -> None:
    assert licence in classify(find_chip(name), date.fromisoformat(day)).licence


@pytest.mark.parametrize("name", ["H200", "MI325X"])
def test_the_duty_covers_two_parts(name: str) -> None:
    chip = find_chip(name)
    covered = {
        other.name
        for other in CHIPS.values()
        if any(effect.rule is dates.DUTY_2026 for effect in classify(other, date(2026, 1, 14)).effects)
    }
    assert covered == {"H200 SXM", "Instinct MI325X"}
    assert not any(effect.rule is dates.DUTY_2026 for effect in classify(chip, date(2026, 1, 13)).effects)


@pytest.mark.parametrize(
    ("tpp", "density", "verdict"),
    [
        (4800, 0.1, "3A090.a.1"),
        (4799, 0.1, "below 3A090"),
        (1600, 5.92, "3A090.a.2"),
        (1599, 50.0, "below 3A090"),
        (1600, 5.91, "3A090.b.2"),
        (1600, 3.2, "3A090.b.2"),
        (1600, 3.19, "below 3A090"),
        (2400, 1.6, "3A090.b.1"),
        (2400, 1.59, "below 3A090"),
        (2399, 3.19, "below 3A090"),
        (2399, 3.21, "3A090.b.2"),
        (4000, 4.0, "3A090.b.1"),  # meets b.2 as well
        (4799, 5.93, "3A090.a.2"),
        (1599, None, "below 3A090"),
        (1600, None, "undetermined"),
        (4799, None, "undetermined"),
        (4800, None, "3A090.a.1"),
    ],
)
def test_limits_of_2023(tpp: float, density: float | None, verdict: str) -> None:
    # A hair above, for what division and multiplication lose; the limits themselves are tested with Condition.
    chip = part(tpp + 1e-6, None if density is None else density + 1e-9)
    assert classify(chip, NOW).verdict == verdict


@pytest.mark.parametrize(
    ("value", "sign", "met"),
    [(4800.0, ">=", True), (4799.9, ">=", False), (4800.0, "<", False), (4800.0, ">", False), (None, "<", None)],
)
def test_limits_are_exact(value: float | None, sign: str, met: bool | None) -> None:
    assert Condition("TPP", value, sign, 4800.0).met is met  # type: ignore[arg-type] # one of the signs


def test_an_undetermined_part_says_what_would_decide() -> None:
    result = classify(part(3136), NOW)
    assert result.verdict == "undetermined"
    assert result.reasons == (
        "its die area is not public, and decides: 3A090.a.2 up to 530 mm2 (3136 / 5.92), 3A090.b.1 from there to "
        "1960 mm2 (3136 / 1.6), below 3A090 beyond",
    )


@given(st.floats(1600, 4799), st.floats(50, 3000))
@settings(max_examples=100, deadline=None)
def test_the_break_points_of_an_undetermined_part_hold(tpp: float, area: float) -> None:
    verdict = classify(part(tpp, die_mm2=area), NOW).verdict
    full, next_ = tpp / 5.92, tpp / (1.6 if tpp >= 2400 else 3.2)
    if min(abs(area - full), abs(area - next_), abs(tpp - 2400), tpp - 1600) < 1e-6:
        return
    expected = (
        "3A090.a.2" if area < full else ("3A090.b.1" if tpp >= 2400 else "3A090.b.2") if area < next_ else "below"
    )
    assert verdict.startswith(expected)


def test_note_2_is_about_the_seller() -> None:
    assert classify(part(4000, 8.0), NOW).verdict == "3A090.a.2"
    assert classify(part(4000, 8.0, datacentre=False), NOW).verdict == "outside 3A090 (Note 2)"
    assert classify(part(4800, 8.0, datacentre=False), NOW).verdict == "3A090.a.1"


@pytest.mark.parametrize(
    ("memory", "links", "applies"),
    [
        (1399, 100, False),
        (1400, 100, True),
        (500, 1100, True),
        (900, 799, False),
        (900, 800, True),
        (1400, None, True),
        (1300, None, None),
        (None, 1100, True),
        (None, 100, None),
    ],
)
def test_letters_of_april_2025(memory: float | None, links: float | None, applies: bool | None) -> None:
    chip = part(
        1000,
        1.0,
        vendor="NVIDIA",
        memory_type="HBM3",
        bandwidth=memory and memory * 1e9,
        interconnect=links and links * 1e9,
    )
    (effect,) = (each for each in classify(chip, NOW).effects if each.rule is dates.LETTERS_2025)
    assert effect.applies is applies


def test_missing_links_leave_the_rule_of_2022_open() -> None:
    day = date(2022, 12, 1)
    assert classify(part(6000, memory_type="HBM2"), day).verdict == "undetermined"
    assert classify(part(6000, memory_type="GDDR6"), day).verdict == "below 3A090"  # a card on PCIe
    assert classify(part(4000, memory_type="HBM2"), day).verdict == "below 3A090"
    assert classify(part(6000, interconnect=600e9), day).verdict == "3A090 (2022)"


def test_the_arithmetic_is_shown() -> None:
    result = classify(find_chip("H20"), NOW)
    assert result.tpp_how == "148 x 10^12 bf16 operations/s x 16 bits = 2368"
    assert result.density_how == "2368 / 814 mm2 = 2.91"
    assert [check.paragraph for check in result.checks] == ["3A090.a.1", "3A090.a.2", "3A090.b.1", "3A090.b.2"]


def test_what_is_uncertain_is_said() -> None:
    def said(name: str, day: date = NOW) -> str:
        return "\n".join(classify(find_chip(name), day).caveats)

    assert "PD 1.55 against 1.6" in said("MI308X")
    assert "the die area (as the MI300X; 80 of 304 CU) is not certain" in said("MI308X")
    assert "TPP 4992 against 4800" in said("a100 80gb")
    assert "close" not in said("H100")
    assert "decides; ours is a guess" in said("RTX PRO 6000")
    assert "press reports" in said("H20")
    assert "are not known here" not in said("H20")
    assert "rules published after September 2026" in said("H20", date(2027, 1, 1))
    assert "taken as that of PCIe" in said("RTX 5090 D")


def test_close_needs_all_that_hold_an_answer_up() -> None:
    far, near = Condition("TPP", 100, ">=", 4800), Condition("PD", 5.9, ">=", 5.92)
    assert Check("x", (near,)).turning == (near,)
    assert Check("x", (far, near)).turning == ()
    assert Check("x", (Condition("TPP", 5000, ">=", 4800), near)).turning == (near,)


def test_dates_are_in_order_and_rules_follow_each_other() -> None:
    assert [rule.start for rule in dates.RULES] == sorted(rule.start for rule in dates.RULES)
    assert dates.RULE_2022.end == dates.RULE_2023.start == dates.LETTER_2023.end
    assert dates.in_force(date(2022, 1, 1)) == ()
    assert dates.RULE_2023 in dates.in_force(NOW)
    assert all(rule.source for rule in dates.RULES)


@given(st.floats(0.1, 1e5), st.floats(0.01, 50), st.dates(date(2020, 1, 1), date(2030, 1, 1)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_more_is_never_less_controlled(tpp: float, density: float, day: date, datacentre: bool) -> None:
    order = ("no rule", "outside", "below", "3A090.b", "3A090")
    ranks = []
    for factor in (1.0, 2.0):  # twice the performance on the same die
        verdict = classify(part(tpp * factor, density * factor, datacentre=datacentre), day).verdict
        if verdict == "undetermined":
            return
        ranks.append(next(rank for rank, word in enumerate(order) if verdict.startswith(word)))
    assert ranks[0] <= ranks[1]
