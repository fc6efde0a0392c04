"""Conditions on a part's figures, and their answers: yes, no, or unknown where a figure is not public.

Owns the logic that a missing figure leaves open, and which figures the rules look at. Knows no limit and no date.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freehold.hardware.chips import Chip

Sign = Literal[">=", ">", "<"]

PCIE = 128.0
"""GB/s of PCIe 5.0 x16 in both directions: all that a part without links of its own has."""


@dataclass(frozen=True)
class Condition:
    """One condition on one figure. met is None where the figure is not public."""

    what: str
    value: float | None
    sign: Sign
    limit: float

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        if self.sign == "<":
            return self.value < self.limit
        return self.value >= self.limit if self.sign == ">=" else self.value > self.limit

    @property
    def shown(self) -> str:
        """The figure as text, with the digits that the limits have."""
        if self.value is None:
            return "not public"
        return f"{self.value:.2f}" if self.what == "PD" else f"{self.value:.0f}"

    @property
    def is_close(self) -> bool:
        """Whether an error of 5 % in the figure could turn the answer."""
        return self.value is not None and abs(self.value - self.limit) <= 0.05 * self.limit


@dataclass(frozen=True)
class Check:
    """The conditions of one paragraph: all of them must be met, or, with any_of, one."""

    paragraph: str
    conditions: tuple[Condition, ...]
    any_of: bool = False

    @property
    def met(self) -> bool | None:
        answers = [each.met for each in self.conditions]
        decisive = self.any_of
        if decisive in answers:
            return decisive
        return None if None in answers else not decisive

    @property
    def turning(self) -> tuple[Condition, ...]:
        """The conditions so close to their limits that small errors could turn the answer."""
        deciding = [each for each in self.conditions if each.met is self.met]
        close = tuple(each for each in deciding if each.is_close)
        # Where one condition decides alone, each of the deciding ones holds the answer up, and all would have to turn.
        return close if self.met is not self.any_of or len(close) == len(deciding) else ()


def tpp_condition(chip: Chip, sign: Sign, limit: float) -> Condition:
    return Condition("TPP", chip.tpp, sign, limit)


def memory_condition(chip: Chip, sign: Sign, limit: float) -> Condition:
    """On the peak bandwidth of memory, GB/s."""
    return Condition("memory", memory_rate(chip), sign, limit)


def memory_rate(chip: Chip) -> float | None:
    """GB/s."""
    return None if chip.bandwidth is None else chip.bandwidth / 1e9


def io_rate(chip: Chip) -> float | None:
    """GB/s of all links, both directions; PCIe's where the part is of a kind that has nothing else, None if unknown."""
    if chip.interconnect is not None:
        return chip.interconnect / 1e9
    return PCIE if chip.kind in ("consumer", "workstation", "apu", "cpu") or "GDDR" in chip.memory_type else None
