"""What rules besides 3A090 add for a part on a day: letters, reviews of licences, duties, guidance.

Owns their conditions and what follows; export_dates.py has the limits, export_rules.py the paragraph itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from freehold.hardware import export_dates as dates
from freehold.hardware.chips import Chip
from freehold.hardware.export_checks import Check, Condition, io_rate, memory_condition, memory_rate, tpp_condition
from freehold.hardware.export_dates import Rule


@dataclass(frozen=True)
class Effect:
    """What another rule adds to the paragraph. applies is None where a figure is missing."""

    rule: Rule
    applies: bool | None
    text: str
    checks: tuple[Check, ...] = ()


def effects_on(chip: Chip, on: date, paragraph: str) -> Iterable[Effect]:
    """What the other rules in force add to a part of this paragraph, in the order of their dates."""
    if chip.prc_design:
        if dates.GUIDANCE_2025.in_force(on) and chip.name.startswith(dates.GUIDANCE_PARTS):
            yield Effect(
                dates.GUIDANCE_2025, True, "using this part anywhere may be a violation without US authorisation"
            )
        return
    if dates.LETTER_2023.in_force(on) and chip.vendor == "NVIDIA":
        check = Check("letter", (tpp_condition(chip, ">=", dates.TPP_FULL),))
        applies = check.met if chip.datacentre else False
        text = "" if applies is False else "licence for China and other named destinations, ahead of the rule"
        yield Effect(dates.LETTER_2023, applies, text, (check,))
    if dates.DIFFUSION_2025.in_force(on) and paragraph.startswith("3A090.a"):
        yield Effect(dates.DIFFUSION_2025, True if on < dates.DIFFUSION_NOT_ENFORCED else None, _diffusion(on))
    if dates.LETTERS_2025.in_force(on) and chip.vendor in dates.LETTER_COMPANIES:
        yield _letters(chip, on)
    if dates.DUTY_2026.in_force(on):
        yield from _duty(chip)
    if dates.REVIEW_2026.in_force(on) and paragraph.startswith("3A090"):
        yield _review(chip)


def _diffusion(on: date) -> str:
    if on < dates.DIFFUSION_NOT_ENFORCED:
        return f"a licence worldwide, to be complied with from {dates.DIFFUSION_COMPLIANCE}"
    return "announced on 2025-05-13 not to be enforced, but never withdrawn in the Federal Register as far as was found"


def _letters(chip: Chip, on: date) -> Effect:
    memory, links = memory_rate(chip), io_rate(chip)
    together = None if memory is None else memory + (links or 0.0)
    if links is None and together is not None and together < dates.LETTER_SUM:
        together = None  # the missing link rate could carry it over
    check = Check(
        "letter",
        (
            Condition("memory", memory, ">=", dates.LETTER_MEMORY),
            Condition("I/O", links, ">=", dates.LETTER_IO),
            Condition("memory + I/O", together, ">=", dates.LETTER_SUM),
        ),
        any_of=True,
    )
    text = (
        "" if check.met is False else "licence for China, other D:5 destinations and companies with headquarters there"
    )
    if on >= dates.LICENCES_REPORTED and chip.name.startswith(dates.LICENSED_PARTS):
        text += "; licences against 15 % of the revenue were reported from August 2025, without an official text"
    return Effect(dates.LETTERS_2025, check.met, text, (check,))


def _duty(chip: Chip) -> Iterable[Effect]:
    for low, high, slow, fast in dates.DUTY_BANDS:
        conditions = (
            tpp_condition(chip, ">", low),
            tpp_condition(chip, "<", high),
            memory_condition(chip, ">", slow),
            memory_condition(chip, "<", fast),
        )
        check = Check("duty", conditions)
        if check.met:
            yield Effect(dates.DUTY_2026, True, "parts for China pass through the US for the laboratory test", (check,))


def _review(chip: Chip) -> Effect:
    conditions = (tpp_condition(chip, "<", dates.REVIEW_TPP), memory_condition(chip, "<", dates.REVIEW_MEMORY))
    check = Check("review", conditions)
    text = {
        True: "case by case, if sold in the US too, tested by a US laboratory, shipped from the US, at most half of "
        "its US volume, and certified by seller and buyer",
        False: "the presumption of denial stays",
        None: "undecided: a figure is missing",
    }[check.met]
    return Effect(dates.REVIEW_2026, check.met, text, (check,))
