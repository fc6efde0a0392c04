"""The catalogue of processors: what each has in memory, bandwidth and arithmetic, and how well that is known.

Owns the record `Chip`, the order of the catalogue and how a name finds its part, however it is written. The figures are
in chips.csv; how that file and a user's own are read is chip_table.py's. Knows nothing of models, of speed, or of the
rules of export (export_rules.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from freehold.errors import NotFoundError, RequestError
from freehold.hardware.chip_table import Row, parse_table, read_file

BITS: Mapping[str, int] = MappingProxyType({"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp6": 6, "fp4": 4, "int4": 4})
"""The formats of `Chip.flops` -> bits of an operand."""

_REQUIRED = ("vendor", "kind", "datacentre", "memory_bytes", "bandwidth")
"""What a row must say of a part that the catalogue does not have, besides a rate."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One processor as sold. What is not public is None, or missing in `flops`; no figure is a guess of ours.

    memory_bytes: of a CPU, the largest supported. bandwidth: peak of that memory, bytes/s. flops: format -> dense
    operations per second, never "with sparsity"; "bf16" with float32 accumulation, "fp16" the highest advertised, which
    on consumer cards accumulates in float16. interconnect: bytes/s of all links, both directions together. die_mm2: the
    logic dies made in a non-planar process. maker_tpp, maker_class: what its maker says of export control. prc_design:
    designed in China. doubtful: which of the figures are less sure than `confidence`: "die" or "compute".
    """

    vendor: str
    name: str
    kind: str
    datacentre: bool
    prc_design: bool = False
    year: int | None = None
    memory_bytes: float | None = None
    memory_type: str = ""
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    die_mm2: float | None = None
    die_note: str = ""
    process: str = ""
    tdp_w: float | None = None
    interconnect: float | None = None
    maker_tpp: float | None = None
    maker_class: str = ""
    maker_source: str = ""
    notes: str = ""
    sources: tuple[str, ...] = ()
    confidence: str = "low"
    doubtful: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def tpp_format(self) -> str | None:
        """The format whose rate times its bits is largest; None without any rate."""
        return max(self.flops, key=lambda name: self.flops[name] * BITS[name], default=None)

    @property
    def tpp(self) -> float | None:
        """Total processing performance: the largest of 10^12 operations/s times bits; without rates, the maker's."""
        best = self.tpp_format
        return self.maker_tpp if best is None else self.flops[best] * BITS[best] / 1e12

    @property
    def performance_density(self) -> float | None:
        """Total processing performance per mm2 of die."""
        return None if self.tpp is None or self.die_mm2 is None else self.tpp / self.die_mm2

    @property
    def ridge(self) -> float | None:
        """bf16 operations per byte at which arithmetic takes as long as memory does."""
        rate = self.flops.get("bf16")
        return None if rate is None or self.bandwidth is None else rate / self.bandwidth


@cache
def _packaged() -> Mapping[str, Chip]:
    text = resources.files("freehold.hardware").joinpath("chips.csv").read_text("utf-8")
    return MappingProxyType({row.name: _make(row) for row in parse_table(text, "chips.csv")})


def load_chips(user_file: Path | None = None) -> Mapping[str, Chip]:
    """The catalogue by name, in its own order. Read-only.

    user_file: a table with the columns of chips.csv, or some of them. A row that names a part of the catalogue replaces
    the figures it gives; any other row adds a part, and must say enough of it. Raises RequestError naming file, line
    and column, NotFoundError for no such file.
    """
    if user_file is None:
        return _packaged()
    chips = dict(_packaged())
    seen: dict[str, str] = {}
    for row in read_file(user_file):
        known = _named(row.name, chips.values())
        name = row.name if known is None else known.name
        if name in seen:
            raise RequestError(f"{row.where}: {name} was there before, at {seen[name]}; expected one row per processor")
        seen[name] = row.where
        chips[name] = _add(row, chips, user_file) if known is None else _override(known, row, user_file)
    return MappingProxyType(chips)


def _make(row: Row) -> Chip:
    known: dict[str, Any] = {name: value for name, value in row.fields.items() if value is not None}
    rates = {name: rate for name, rate in row.flops.items() if rate is not None}
    return Chip(name=row.name, flops=MappingProxyType(rates), **known)


def _add(row: Row, chips: Mapping[str, Chip], user_file: Path) -> Chip:
    columns = {"memory_bytes": "memory_gb", "bandwidth": "bandwidth_gbps"}
    missing = [columns.get(name, name) for name in _REQUIRED if row.fields.get(name) is None]
    if not any(row.flops.values()):
        missing.append("a rate such as bf16_tflops")
    if missing:
        raise RequestError(
            f"{row.where}: {row.name} is not in the catalogue{_nearest(row.name, chips)}, so its row must describe it; "
            f"missing: {', '.join(missing)}"
        )
    chip = _make(row)
    confidence = chip.confidence if "confidence" in row.fields else "medium"
    return replace(chip, sources=chip.sources or (f"user file {user_file.name}",), confidence=confidence)


def _override(chip: Chip, row: Row, user_file: Path) -> Chip:
    empty = {item.name: item.default for item in fields(Chip)}
    given: dict[str, Any] = {name: empty[name] if value is None else value for name, value in row.fields.items()}
    rates = {**chip.flops, **row.flops}
    given["flops"] = MappingProxyType({name: rate for name, rate in rates.items() if rate is not None})
    given["sources"] = (*given.get("sources", chip.sources), f"user file {user_file.name}")
    return replace(chip, **given)


def find_chip(name: str, chips: Mapping[str, Chip] | None = None) -> Chip:
    """The one part that `name` means: case, spaces and punctuation do not matter, nor do words such as RTX.

    Raises RequestError listing the candidates where it means several, NotFoundError with the nearest names for none.
    """
    found = match_chips(name, chips)
    if len(found) > 1:
        listed = ", ".join(chip.name for chip in found[:8]) + (", ..." if len(found) > 8 else "")
        raise RequestError(f"{name[:80]!r} is the name of {len(found)} parts: {listed}; write more of the one you mean")
    return found[0]


def match_chips(name: str, chips: Mapping[str, Chip] | None = None) -> tuple[Chip, ...]:
    """Every part that `name` may mean: the one of that name, those also called so, or all whose name has its words.

    Raises NotFoundError with the nearest names where there is none.
    """
    chips = load_chips() if chips is None else chips
    wanted, words = _squeeze(name), _words(name)
    named = _named(name, chips.values())
    if named is not None:
        return (named,)
    found = [chip for chip in chips.values() if wanted and wanted in _spellings(chip)]
    found = found or [chip for chip in chips.values() if words and _has_words(words, chip)]
    if not found:
        raise NotFoundError(
            f"no processor {name[:80]!r} in the catalogue{_nearest(name, chips)}; `freehold chips` lists them, and "
            f"--user-file adds your own"
        )
    return tuple(found)


def _named(name: str, chips: Iterable[Chip]) -> Chip | None:
    """The part of exactly this name, however written; short names and aliases do not count."""
    return next((chip for chip in chips if _squeeze(chip.name) == _squeeze(name)), None)


_FAMILIES = "nvidia|amd|intel|geforce|rtx|rx|radeon|instinct|ascend|huawei|arc|xeon|epyc|ryzen|tesla"
"""Words that people leave out of a name, or put before it."""


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.+]+", name.lower())


def _squeeze(name: str) -> str:
    """A name without what people write in different ways; family words go, unless nothing else is left."""
    letters = re.sub(r"[^a-z0-9+]", "", name.lower())
    return re.sub(rf"^(?:{_FAMILIES})+(?=.*\d)", "", letters)


def _spellings(chip: Chip) -> set[str]:
    bare = re.sub(r"\(.*?\)", " ", chip.name)  # "Ascend 910C (Atlas A3 package)" is the 910C
    return {_squeeze(text) for text in (chip.name, bare, f"{chip.vendor} {bare}", *chip.aliases)}


def _has_words(words: list[str], chip: Chip) -> bool:
    """Whether every word begins one of the part's; a number must end where its own does: H20 is not H200."""
    own = _words(" ".join((chip.vendor, chip.name, *chip.aliases)))
    return all(any(re.match(re.escape(word) + r"(?!(?<=\d)\d)", other) for other in own) for word in words)


def _nearest(name: str, chips: Mapping[str, Chip]) -> str:
    """ " (did you mean ...?)", or nothing."""
    spelt = {spelling: chip.name for chip in chips.values() for spelling in sorted(_spellings(chip))}
    close = difflib.get_close_matches(_squeeze(name[:100]), spelt, n=6, cutoff=0.55)
    names = list(dict.fromkeys(spelt[spelling] for spelling in close))[:3]
    return f" (did you mean {' or '.join(names)}?)" if names else ""
