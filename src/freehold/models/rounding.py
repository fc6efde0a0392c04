"""Which weights are rounded while they are loaded, and to what.

Owns the words of `--weights` and what each means for a tensor. Knows no family: a family's file says which matrices
`auto` rounds (ROUNDED), which nothing rounds (EXACT), and what its embedding and head are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from freehold.formats import FORMATS, Format
from freehold.kernels import ROUNDED_FROM

Rounding = Literal["auto", "native", "q8", "q4"]
"""native: every weight as published. auto: so, but for the bfloat16 matrices that a family names in ROUNDED, which
become Q8_0. q8: every matrix stored in F32, F16, BF16 or F8_E4M3 becomes Q8_0, where its rows are whole blocks. q4: the
same become Q4_K, or Q4_1 where rows are not whole blocks of that; the head and the embedding Q8_0. Routers, norms,
biases, tables that stay in their file, and what is quantised already are exact under every word. The reference
precision rounds nothing."""

EXPLICIT: tuple[Rounding, ...] = ("q8", "q4")
"""Whoever says one of these is told what it costs."""


class Shaped(Protocol):
    """What a decision needs of a tensor."""

    @property
    def format(self) -> Format: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class RoundingPolicy:
    """A word, and the endings of tensor names that give it its meaning for one family."""

    word: Rounding = "native"
    automatic: tuple[str, ...] = ()  # what auto rounds
    exact: tuple[str, ...] = ()  # what nothing rounds
    eight: tuple[str, ...] = ()  # what q4 gives eight bits

    @staticmethod
    def of(family: Any, word: Rounding) -> RoundingPolicy:
        """The policy for a family's checkpoint."""
        return RoundingPolicy(word, family.ROUNDED, family.EXACT, (family.EMBED, family.HEAD))

    def may_round(self, name: str) -> bool:
        """Whether `target` could give a format for a tensor of this name."""
        if self.word in ("native", "auto"):
            return self.word == "auto" and name.endswith(self.automatic)
        return name.endswith(".weight") and not name.endswith(self.exact)

    def target(self, name: str, tensor: Shaped) -> str | None:
        """The format that a matrix, or a stack of experts, is rounded to; None if it stays as it is."""
        stored = tensor.format.name
        if not self.may_round(name) or stored not in ROUNDED_FROM or (self.word == "auto" and stored != "BF16"):
            return None
        if len(tensor.shape) < 2 or not self._fits("Q8_0", tensor):
            return None
        if self.word != "q4" or name.endswith(self.eight):
            return "Q8_0"
        return "Q4_K" if self._fits("Q4_K", tensor) else "Q4_1"

    def describe(self, n_before: int, n_after: int) -> str:
        """For people: what is rounded to what, and the bytes of that before and after; empty if nothing is."""
        if not n_before:
            return ""
        what = "attention and head rounded to Q8_0" if self.word == "auto" else f"weights rounded to {self.word}"
        return f"{what} ({_size(n_after)} for {_size(n_before)})"

    @staticmethod
    def _fits(fmt: str, tensor: Shaped) -> bool:
        return tensor.shape[-1] % FORMATS[fmt].block == 0


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
