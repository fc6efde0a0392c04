"""The US rules on exporting processors, as dated facts: when each began, its limits, and where that was read.

Owns dates, limits, and how sure each reading is. Knows no processor: export_rules.py puts parts and rules together.
Information, not legal advice; rules published after `READ_UNTIL` are not in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Literal

READ_UNTIL = date(2026, 9, 1)
"""The newest source read is of about this day."""

DISCLAIMER = (
    "Derived from public figures by arithmetic on the limits of 15 CFR 774, Supplement 1, and of the rules and letters "
    f"around it, as read up to {READ_UNTIL:%B %Y}. Information: neither a classification nor legal advice."
)

Grade = Literal["official", "lawyers", "press"]
"""Where a rule was read: its own text or an official's quoting it; lawyers' readings; press and company filings."""


@dataclass(frozen=True)
class Rule:
    """One rule or letter: in force from `start`, until the day before `end`."""

    title: str
    start: date
    source: str
    grade: Grade
    end: date | None = None

    def in_force(self, on: date) -> bool:
        return self.start <= on and (self.end is None or on < self.end)


RULE_2022 = Rule(
    "3A090 as of October 2022: processing and input/output together",
    date(2022, 10, 7),
    "87 FR 62186, published 2022-10-13; CRS R48642",
    "official",
    end=date(2023, 11, 17),
)
LETTER_2023 = Rule(
    "letter to NVIDIA: the text of October 2023 at once, for data-centre parts with a TPP of 4800 or more",
    date(2023, 10, 23),
    "NVIDIA 8-K of 2023-10-24, as reported by The Register",
    "press",
    end=date(2023, 11, 17),
)
RULE_2023 = Rule(
    "3A090 as of October 2023: total processing performance and performance density",
    date(2023, 11, 17),
    "88 FR 73458, published 2023-10-25; corrected by 89 FR 23876 (April 2024)",
    "official",
)
DIFFUSION_2025 = Rule(
    "AI Diffusion: a worldwide licence for 3A090.a", date(2025, 1, 15), "90 FR 4544; GAO B-337935", "official"
)
LETTERS_2025 = Rule(
    "letters of April 2025: memory and input/output bandwidth",
    date(2025, 4, 9),
    "unpublished; 8-K filings, and limits as told to Intel's customers (FT, Reuters)",
    "press",
)
GUIDANCE_2025 = Rule(
    "guidance on General Prohibition 10 and Ascend processors",
    date(2025, 5, 13),
    "BIS, 2025-05-13; Baker McKenzie, Kirkland",
    "lawyers",
)
DUTY_2026 = Rule(
    "25 % duty on import into the US, unless exempt (US data centres, research, consumers, ...)",
    date(2026, 1, 14),
    "Proclamation 11002, HTS 9903.79.01; CBP CSMS 67400472",
    "official",
)
REVIEW_2026 = Rule(
    "licences for China and Macau reviewed case by case below two limits",
    date(2026, 1, 15),
    "91 FR 1684 (2026-00789)",
    "official",
)

RULES = (
    RULE_2022,
    LETTER_2023,
    RULE_2023,
    DIFFUSION_2025,
    LETTERS_2025,
    GUIDANCE_2025,
    DUTY_2026,
    REVIEW_2026,
)
"""In the order of their dates."""

DIFFUSION_COMPLIANCE = date(2025, 5, 15)
DIFFUSION_NOT_ENFORCED = date(2025, 5, 13)
LICENCES_REPORTED = date(2025, 8, 8)
LICENSED_PARTS = ("H20", "Instinct MI308")
"""From about that day, licences for these with 15 % of the revenue were reported."""

LETTER_COMPANIES = ("NVIDIA", "AMD", "Intel")
"""Makers known to hold a letter of April 2025."""
GUIDANCE_PARTS = ("Ascend 910B", "Ascend 910C", "Ascend 910D")

TPP_FULL = 4800.0
TPP_NEXT = 2400.0
TPP_DENSE = 1600.0
PD_FULL = 5.92
PD_DENSE = 3.2
PD_NEXT = 1.6
IO_2022 = 600.0
"""GB/s, all inputs and outputs but memory, both directions together."""

LETTER_MEMORY, LETTER_IO, LETTER_SUM = 1400.0, 1100.0, 1700.0
"""GB/s."""

REVIEW_TPP, REVIEW_MEMORY = 21_000.0, 6500.0

DUTY_BANDS = ((14_000.0, 17_500.0, 4500.0, 5000.0), (20_800.0, 21_100.0, 5800.0, 6200.0))
"""TPP above, below; GB/s of memory above, below."""


def in_force(on: date, rules: Iterable[Rule] = RULES) -> tuple[Rule, ...]:
    """The rules in force on a day, in the order of their dates."""
    return tuple(rule for rule in rules if rule.in_force(on))
