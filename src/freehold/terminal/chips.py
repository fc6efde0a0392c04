"""`freehold chips`: the catalogue of processors, filtered and sorted, as a table or as plain data for --json.

Owns which parts are shown, the table and its legend. One part in full is chip_page.py's; figures and rules come from
`hardware`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from freehold.errors import NotFoundError, RequestError
from freehold.hardware.chips import Chip, load_chips, match_chips
from freehold.hardware.export_checks import Check
from freehold.hardware.export_dates import DISCLAIMER
from freehold.hardware.export_rules import Classification, Verdict, classify
from freehold.terminal.chip_page import render_page
from freehold.terminal.console import note, table

Facts = dict[str, Any]

WIDE = 110
"""Columns from which on the table has room for vendors, whole names and whole paragraphs."""
PIPED_WIDTH = 120

SORTS: Mapping[str, Callable[[Chip], float | None]] = {
    "memory": lambda chip: chip.memory_bytes,
    "bandwidth": lambda chip: chip.bandwidth,
    "bf16": lambda chip: chip.flops.get("bf16"),
    "fp8": lambda chip: chip.flops.get("fp8"),
    "int8": lambda chip: chip.flops.get("int8"),
    "tpp": lambda chip: chip.tpp,
    "pd": lambda chip: chip.performance_density,
    "year": lambda chip: chip.year,
}
"""What --sort takes besides "name"; the largest first, missing figures last."""

_SHORT: Mapping[Verdict, str] = {
    "3A090.a.1": "a.1",
    "3A090.a.2": "a.2",
    "3A090.b.1": "b.1",
    "3A090.b.2": "b.2",
    "3A090 (2022)": "2022",
    "below 3A090": "below",
    "outside 3A090 (Note 2)": "note 2",
    "undetermined": "undecided",
    "no compute figure": "no figure",
    "not classified": "unclassed",
    "no rule yet": "no rule",
}
"""How a table of 80 columns, and --rule, name a verdict."""
RULES = (*_SHORT.values(), "a", "b", "letter")


@dataclass(frozen=True)
class Filters:
    """What narrows the list; None does not. min_memory in GB (10^9 bytes)."""

    vendor: str | None = None
    kind: str | None = None
    min_memory: float | None = None
    rule: str | None = None


def show_chips(
    names: Sequence[str], filters: Filters, *, sort: str | None, on: str | None, user_file: Path | None, as_json: bool
) -> Any:
    """The text to print, or with as_json the list of facts: of the parts named, else of all that pass the filters.

    Raises NotFoundError and RequestError for names, dates, filters and user files that are wrong.
    """
    day, chips = read_day(on), load_chips(user_file)
    names = _joined(names, chips)
    matches = [match_chips(name, chips) for name in names]
    for name, found in zip(names, matches, strict=True):
        if len(found) > 1 and not as_json:
            note(f"{name!r} is the name of {len(found)} parts; write more of one to see everything about it")
    chosen = list(dict.fromkeys(chip.name for found in matches for chip in found)) if names else list(chips)
    kept = _sorted(_filtered([classify(chips[name], day) for name in chosen], filters, chips), sort)
    if not kept:
        raise NotFoundError(f"none of {len(chosen)} processors passes the filters; leave one out")
    if as_json:
        return [describe(result) for result in kept]
    width = shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
    if names and all(len(found) == 1 for found in matches):
        return "\n\n".join(render_page(result, width) for result in kept)
    return render_table(kept, day, width)


def _joined(names: Sequence[str], chips: Mapping[str, Chip]) -> Sequence[str]:
    """`chips H100 PCIe`, without quotes, is one name if it is that of one part."""
    if len(names) < 2:
        return names
    try:
        found = match_chips(" ".join(names), chips)
    except NotFoundError:
        return names
    return [found[0].name] if len(found) == 1 else names


def read_day(text: str | None) -> date:
    """A day from 2025-04-09; today for None. Raises RequestError."""
    if text is None:
        return date.today()
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        try:
            return date.fromisoformat(text)
        except ValueError:
            pass
    raise RequestError(f"--on is {text[:40]!r}; expected a day such as 2023-10-25")


def _filtered(found: Iterable[Classification], filters: Filters, chips: Mapping[str, Chip]) -> list[Classification]:
    vendors = _vendors(filters.vendor, chips)
    rule = _rule(filters.rule)
    return [
        result
        for result in found
        if (vendors is None or result.chip.vendor in vendors)
        and (filters.kind is None or result.chip.kind == filters.kind)
        and (filters.min_memory is None or (result.chip.memory_bytes or 0) >= filters.min_memory * 1e9)
        and (rule is None or _falls_under(result, rule))
    ]


def _vendors(wanted: str | None, chips: Mapping[str, Chip]) -> set[str] | None:
    if wanted is None:
        return None
    known = sorted({chip.vendor for chip in chips.values()})
    found = {vendor for vendor in known if wanted.strip() and wanted.strip().lower() in vendor.lower()}
    if not found:
        raise RequestError(f"--vendor is {wanted[:40]!r}; expected one of {', '.join(known)}")
    return found


def _rule(wanted: str | None) -> str | None:
    if wanted is None:
        return None
    rule = re.sub(r"^3a090\.?", "", wanted.strip().lower()).strip("() ") or "3a090"
    rule = {"note2": "note 2", "undetermined": "undecided"}.get(rule, rule)
    if rule not in (*RULES, "3a090"):
        raise RequestError(f"--rule is {wanted[:40]!r}; expected 3A090, {', '.join(RULES[:-1])} or {RULES[-1]}")
    return rule


def _falls_under(result: Classification, rule: str) -> bool:
    if rule == "letter":
        return result.by_letter
    if rule == "3a090":
        return result.verdict.startswith("3A090")
    short = _SHORT[result.verdict]
    return short == rule or (rule in ("a", "b") and short.startswith(f"{rule}."))


def _sorted(found: list[Classification], sort: str | None) -> list[Classification]:
    if sort is None:
        return found
    if sort == "name":
        return sorted(found, key=lambda result: result.chip.name.lower())
    key = SORTS[sort]
    return sorted(found, key=lambda result: -(key(result.chip) or 0))


def render_table(found: Sequence[Classification], on: date, width: int) -> str:
    """One line per part, and a legend, in `width` columns from 80 on."""
    wide = width >= WIDE
    header = ("name", "GB", "GB/s", "bf16", "fp8", "int8", "TPP", "PD", "rule")
    rows = [header, *(_row(result, wide) for result in found)]
    right = [[cell.rjust(max(map(len, column))) for cell in column] for column in zip(*rows, strict=True)]
    columns = [list(next(iter(zip(*rows, strict=True)))), *right[1:-1], [row[-1] for row in rows]]
    if wide:
        columns.insert(0, ["maker", *(result.chip.vendor for result in found)])
    return f"{table(zip(*columns, strict=True))}\n\n{_legend(found, on, min(width, PIPED_WIDTH))}"


NARROW_NAME = 24


def _row(result: Classification, wide: bool) -> tuple[str, ...]:
    chip = result.chip
    name = chip.name
    if not wide and len(name) > NARROW_NAME:
        name = re.sub(r" \(.*\)", "", name)
        name = name if len(name) <= NARROW_NAME else f"{name[: NARROW_NAME - 1]}…"
    figures = (
        chip.memory_bytes and chip.memory_bytes / 1e9,
        chip.bandwidth and chip.bandwidth / 1e9,
        *(chip.flops[name] / 1e12 if name in chip.flops else None for name in ("bf16", "fp8", "int8")),
        chip.tpp,
    )
    density = chip.performance_density
    shown = "-" if density is None else f"{density:.2f}" if density < 10 else f"{density:.1f}"
    return (name, *(_figure(value) for value in figures), shown, _rule_cell(result, wide))


def _figure(value: float | None) -> str:
    """Three digits or all before the point: 2250, 148, 59.4, 0.15; a dash for what is not public."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _rule_cell(result: Classification, wide: bool) -> str:
    text = _SHORT[result.verdict]
    if wide and text[:2] in ("a.", "b."):
        text = f"3A090.{text}"
    if result.by_letter:
        text = f"{text}, letter" if wide else "letter"
    if result.by_notice:
        text += ", NAC" if wide else " NAC"
    return f"({text})" if result.comparison_only else text


def _legend(found: Sequence[Classification], on: date, width: int) -> str:
    """What the columns mean, and the words of the last one that occur."""
    import textwrap  # only here

    shown = {_SHORT[result.verdict] for result in found}
    meanings = {
        "a.1": "a.1, a.2, b.1, b.2: the paragraph of 3A090 whose parameters the part meets",
        "2022": "2022: 3A090 in its text of October 2022",
        "below": "below: under every limit",
        "note 2": "note 2: not for data centres and a TPP below 4800, so outside",
        "undecided": "undecided: needs a figure that is not public",
        "no figure": "no figure: no compute rate is public",
        "unclassed": "unclassed: a server CPU whose maker is silent",
        "no rule": f"no rule: none of this kind before {on}",
    }
    words = [meanings[word] for word in meanings if word in shown or (word == "a.1" and shown & {"a.2", "b.1", "b.2"})]
    words += ["letter: licence by letter all the same"] if any(result.by_letter for result in found) else []
    words += ["NAC: after notice, by a licence exception"] if any(result.by_notice for result in found) else []
    words += ["(...): Chinese design, for comparison only"] if any(result.comparison_only for result in found) else []
    paragraphs = [
        "GB, GB/s: memory and its peak bandwidth. bf16, fp8, int8: dense 10^12 operations per second, bf16 with "
        "float32 accumulation. TPP: total processing performance. PD: TPP per mm2 of die. -: not public.",
        f"US export rules on {on}. {'; '.join(words)}. `freehold chips NAME` has the arithmetic and what is uncertain.",
        DISCLAIMER,
    ]
    return "\n".join(line for text in paragraphs for line in textwrap.wrap(text, width))


def describe(result: Classification) -> Facts:
    """Everything about one part, in base units, for --json."""
    chip = result.chip
    return {
        "name": chip.name,
        "vendor": chip.vendor,
        "kind": chip.kind,
        "datacentre": chip.datacentre,
        "prc_design": chip.prc_design,
        "year": chip.year,
        "memory_bytes": chip.memory_bytes,
        "memory_type": chip.memory_type or None,
        "bandwidth_bytes_per_s": chip.bandwidth,
        "interconnect_bytes_per_s": chip.interconnect,
        "flops": dict(chip.flops),
        "ridge_bf16_flop_per_byte": chip.ridge,
        "die_mm2": chip.die_mm2,
        "die_note": chip.die_note or None,
        "process": chip.process or None,
        "tdp_w": chip.tdp_w,
        "tpp": chip.tpp,
        "tpp_format": chip.tpp_format,
        "performance_density": chip.performance_density,
        "maker": {"class": chip.maker_class or None, "tpp": chip.maker_tpp, "source": chip.maker_source or None},
        "notes": chip.notes or None,
        "sources": list(chip.sources),
        "confidence": chip.confidence,
        "doubtful": list(chip.doubtful),
        "export": _describe_export(result),
    }


def _describe_export(result: Classification) -> Facts:
    return {
        "on": result.on.isoformat(),
        "verdict": result.verdict,
        "by_letter": result.by_letter,
        "by_notice": result.by_notice,
        "comparison_only": result.comparison_only,
        "licence": result.licence,
        "rule": result.rule
        and {"title": result.rule.title, "since": str(result.rule.start), "source": result.rule.source},
        "tpp": result.tpp_how,
        "performance_density": result.density_how,
        "checks": [_describe_check(check) for check in result.checks],
        "reasons": list(result.reasons),
        "effects": [
            {
                "title": effect.rule.title,
                "since": str(effect.rule.start),
                "source": effect.rule.source,
                "grade": effect.rule.grade,
                "applies": effect.applies,
                "text": effect.text,
                "checks": [_describe_check(check) for check in effect.checks],
            }
            for effect in result.effects
        ],
        "maker_agrees": result.maker_agrees,
        "uncertain": list(result.caveats),
        "disclaimer": DISCLAIMER,
    }


def _describe_check(check: Check) -> Facts:
    return {
        "paragraph": check.paragraph,
        "met": check.met,
        "any_of": check.any_of,
        "conditions": [
            {"what": each.what, "value": each.value, "sign": each.sign, "limit": each.limit, "met": each.met}
            for each in check.conditions
        ],
    }
