"""Where a part falls under the US rules on exporting processors on a given day, with the arithmetic.

Owns the conditions of each rule and what follows from them; export_dates.py has the limits. A figure that is missing
leaves a condition undecided, never met. Says nothing of a real item, destination or user: information, not advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from freehold.hardware import export_dates as dates
from freehold.hardware.chips import BITS, Chip
from freehold.hardware.export_checks import PCIE, Check, Condition, io_rate, tpp_condition
from freehold.hardware.export_dates import Rule
from freehold.hardware.export_effects import Effect, effects_on

Verdict = Literal[
    "3A090.a.1",
    "3A090.a.2",
    "3A090.b.1",
    "3A090.b.2",
    "3A090 (2022)",
    "below 3A090",
    "outside 3A090 (Note 2)",
    "undetermined",
    "no compute figure",
    "not classified",
    "no rule yet",
]
"""The paragraph whose parameters a part meets, or why none. "not classified": a server CPU whose maker is silent."""


@dataclass(frozen=True)
class Classification:
    """A part on a day: the verdict, the text it comes from, the checks in order, and what else bears on it.

    tpp_how and density_how are the arithmetic. by_letter: a letter asks for a licence where the paragraph does not.
    by_notice: Licence Exception NAC is open. comparison_only: a Chinese design, which the rules do not govern as an
    export; the verdict is that of an equal US part. maker_agrees: whether its maker's own classification says the same,
    None where it has published none.
    """

    chip: Chip
    on: date
    verdict: Verdict
    rule: Rule | None
    tpp_how: str
    density_how: str
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    effects: tuple[Effect, ...]
    licence: str
    caveats: tuple[str, ...]
    by_letter: bool
    by_notice: bool
    comparison_only: bool
    maker_agrees: bool | None


def classify(chip: Chip, on: date) -> Classification:
    """`chip` under the US rules in force on `on`."""
    rule = next(iter(dates.in_force(on, (dates.RULE_2022, dates.RULE_2023))), None)
    verdict, checks, reasons = _verdict(chip, rule)
    effects = tuple(effects_on(chip, on, verdict))
    by_letter = not is_controlled(verdict) and any(
        effect.applies and effect.rule in (dates.LETTER_2023, dates.LETTERS_2025) for effect in effects
    )
    licence = _licence(chip, verdict, by_letter, effects)
    return Classification(
        chip=chip,
        on=on,
        verdict=verdict,
        rule=rule,
        tpp_how=_tpp_how(chip),
        density_how=_density_how(chip),
        checks=checks,
        reasons=reasons,
        effects=effects,
        licence=licence,
        caveats=_caveats(chip, on, verdict, [*checks, *_review_checks(effects)]),
        by_letter=by_letter,
        by_notice=not chip.prc_design and _needs_notice(chip, verdict),
        comparison_only=chip.prc_design,
        maker_agrees=_maker_agrees(chip, verdict) if rule is dates.RULE_2023 else None,
    )


def is_controlled(verdict: Verdict) -> bool:
    """Whether the verdict is a paragraph of 3A090."""
    return verdict.startswith("3A090")


def _needs_notice(chip: Chip, verdict: Verdict) -> bool:
    """Whether Licence Exception NAC is open: 3A090.b, or 3A090.a for a part not marketed for data centres."""
    return verdict.startswith("3A090.b") or (verdict == "3A090.a.1" and not chip.datacentre)


def _checks_2022(chip: Chip) -> tuple[Check, ...]:
    return (
        Check(
            "3A090 (2022)",
            (Condition("I/O", io_rate(chip), ">=", dates.IO_2022), tpp_condition(chip, ">=", dates.TPP_FULL)),
        ),
    )


def _checks_2023(chip: Chip) -> tuple[Check, ...]:
    density = chip.performance_density
    under_full = Condition("PD", density, "<", dates.PD_FULL)
    return (
        Check("3A090.a.1", (tpp_condition(chip, ">=", dates.TPP_FULL),)),
        Check("3A090.a.2", (tpp_condition(chip, ">=", dates.TPP_DENSE), Condition("PD", density, ">=", dates.PD_FULL))),
        Check(
            "3A090.b.1",
            (
                tpp_condition(chip, ">=", dates.TPP_NEXT),
                tpp_condition(chip, "<", dates.TPP_FULL),
                Condition("PD", density, ">=", dates.PD_NEXT),
                under_full,
            ),
        ),
        Check(
            "3A090.b.2",
            (tpp_condition(chip, ">=", dates.TPP_DENSE), Condition("PD", density, ">=", dates.PD_DENSE), under_full),
        ),
    )


def _verdict(chip: Chip, rule: Rule | None) -> tuple[Verdict, tuple[Check, ...], tuple[str, ...]]:
    """The verdict, the checks that led to it, and what else did."""
    if rule is None:
        return "no rule yet", (), (f"before {dates.RULE_2022.start} no rule set limits of this kind",)
    if chip.kind == "cpu" and chip.datacentre and not chip.maker_class:
        why = "a server CPU: the formula gives a TPP, but no classification of its maker's is known to compare"
        return "not classified", (), (why,)
    if chip.tpp is None:
        return "no compute figure", (), ("no rate of this part is public, so no limit can be tested",)
    note_2 = Check("Note 2", (tpp_condition(chip, "<", dates.TPP_FULL),))
    if rule is dates.RULE_2023 and not chip.datacentre and note_2.met:
        why = "neither designed nor marketed for data centres, and below that TPP: the paragraphs do not reach it"
        return "outside 3A090 (Note 2)", (note_2,), (why,)
    checks = _checks_2022(chip) if rule is dates.RULE_2022 else _checks_2023(chip)
    for n_read, check in enumerate(checks, 1):
        if check.met is None:
            return "undetermined", checks, _missing(chip, rule)
        if check.met:
            return check.paragraph, checks[:n_read], ()  # type: ignore[return-value] # the paragraphs of checks are verdicts
    return "below 3A090", checks, ()


def _missing(chip: Chip, rule: Rule) -> tuple[str, ...]:
    """What would decide an undetermined part."""
    if rule is dates.RULE_2022:
        return ("the rate of its links is not public; from 600 GB/s on it would be 3A090",)
    tpp = chip.tpp or 0.0
    last = ("3A090.b.1", dates.PD_NEXT) if tpp >= dates.TPP_NEXT else ("3A090.b.2", dates.PD_DENSE)
    full, next_ = tpp / dates.PD_FULL, tpp / last[1]
    return (
        "its die area is not public, and decides: "
        f"3A090.a.2 up to {full:.0f} mm2 ({tpp:.0f} / {dates.PD_FULL}), {last[0]} from there to {next_:.0f} mm2 "
        f"({tpp:.0f} / {last[1]}), below 3A090 beyond",
    )


def _tpp_how(chip: Chip) -> str:
    best = chip.tpp_format
    if best is not None:
        return f"{chip.flops[best] / 1e12:g} x 10^12 {best} operations/s x {BITS[best]} bits = {chip.tpp:.0f}"
    return "unknown: no rate is public" if chip.tpp is None else f"{chip.tpp:.0f}, as its maker says"


def _density_how(chip: Chip) -> str:
    if chip.performance_density is None:
        return "unknown: " + ("no die area is public" if chip.die_mm2 is None else "no TPP")
    return f"{chip.tpp:.0f} / {chip.die_mm2:g} mm2 = {chip.performance_density:.2f}"


def _licence(chip: Chip, verdict: Verdict, by_letter: bool, effects: Iterable[Effect]) -> str:
    """What an export to China would need, in one line."""
    if chip.prc_design:
        return "not an export from the US; the verdict is what an equal US part would meet"
    if by_letter:
        return "licence by letter, though the paragraphs ask for none"
    if verdict == "3A090 (2022)":
        return "licence for China, from January 2023 for Macau too"
    if _needs_notice(chip, verdict):
        letter = any(effect.applies and effect.rule is dates.LETTERS_2025 for effect in effects)
        return "Licence Exception NAC after 25 days' notice to BIS, else a licence" + (
            "; a letter of April 2025 may ask for one in any case" if letter else ""
        )
    if is_controlled(verdict):
        review = next((effect for effect in effects if effect.rule is dates.REVIEW_2026), None)
        return "licence, reviewed " + ("case by case" if review and review.applies else "with a presumption of denial")
    if verdict in ("undetermined", "no compute figure", "not classified"):
        return "cannot be told from public figures"
    return "none under 3A090"


def _maker_agrees(chip: Chip, verdict: Verdict) -> bool | None:
    expected = {"4A090.a": "3A090.a", "4A090.b": "3A090.b", "5A002.z.1": "3A090", "4A994.l": None, "5A992.c": None}
    if chip.maker_class not in expected or verdict in ("undetermined", "no compute figure", "not classified"):
        return None
    paragraph = expected[chip.maker_class]
    return verdict.startswith(paragraph) if paragraph else not is_controlled(verdict)


def _review_checks(effects: Iterable[Effect]) -> list[Check]:
    """The checks on which a licence hangs: not those of the duty."""
    return [check for effect in effects if effect.rule is not dates.DUTY_2026 for check in effect.checks]


def _caveats(chip: Chip, on: date, verdict: Verdict, checks: Sequence[Check]) -> tuple[str, ...]:
    """What could make the verdict wrong, the weightiest first."""
    found = []
    close = {f"{each.what} {each.shown} against {each.limit:g}" for check in checks for each in check.turning}
    if close:
        found.append(f"close to a limit, so small errors in public figures matter: {', '.join(sorted(close))}")
    if "die" in chip.doubtful:
        note = f" ({chip.die_note})" if chip.die_note else ""
        found.append(f"the die area{note} is not certain, or which dies count; nor is the density, then")
    uses_links = any(each.what == "I/O" for check in checks for each in check.conditions)
    if uses_links and chip.interconnect is None and io_rate(chip) is not None:
        found.append(f"no link is known, so its I/O is taken as that of PCIe 5.0 x16, {PCIE:.0f} GB/s")
    if "compute" in chip.doubtful or chip.confidence == "low":
        found.append("the compute figures have low confidence")
    if chip.kind == "workstation" or (verdict.startswith("outside") and chip.kind == "gpu"):
        found.append("whether it is marketed for data centres is a fact about its seller, and decides; ours is a guess")
    if is_controlled(verdict) and not chip.prc_design:
        found.append(
            "a card, board or system with such a part is classified as a computer: 4A090, or an entry ending in .z"
        )
    if dates.LETTERS_2025.in_force(on) and chip.vendor in dates.LETTER_COMPANIES and not is_controlled(verdict):
        found.append("the limits of the April 2025 letters are press reports, and so is who holds one")
    if on > dates.READ_UNTIL:
        found.append(f"rules published after {dates.READ_UNTIL:%B %Y} are not known here")
    return tuple(found)
