"""`freehold chips NAME`: one part in full, its figures and the arithmetic of its classification, line by line.

Owns the page's order and wording. Text from a user's file is made harmless before it is shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from freehold.hardware.chips import Chip
from freehold.hardware.export_checks import Check, Condition
from freehold.hardware.export_dates import DISCLAIMER
from freehold.hardware.export_effects import Effect
from freehold.hardware.export_rules import Classification
from freehold.terminal.console import printable

MAX_WIDTH = 110
_LABEL = 14

_ANSWER = {True: "yes", False: "no", None: "?"}
_GRADES = {"official": "", "lawyers": "; as lawyers read it", "press": "; press reports"}
_UNITS = {"TPP": "", "PD": "", "I/O": " GB/s", "memory": " GB/s", "memory + I/O": " GB/s"}


def render_page(result: Classification, width: int) -> str:
    """A part's page in `width` columns."""
    width = min(width, MAX_WIDTH)
    chip = result.chip
    title = f"{chip.name} ({', '.join(filter(None, (chip.vendor, str(chip.year or ''))))})"
    lines = [title, *_rows(_figures(chip), width), "", _headline(result), *_rows(_rule(result), width)]
    if result.effects:
        lines += ["", "Other rules in force", *_effects(result.effects, width)]
    if result.caveats:
        lines += ["", "Uncertain", *_bullets(result.caveats, width)]
    return printable("\n".join([*lines, "", *textwrap.wrap(DISCLAIMER, width)]))


def _figures(chip: Chip) -> Iterator[tuple[str, str]]:
    memory = f"{chip.memory_bytes / 1e9:g} GB" if chip.memory_bytes else "size not public"
    speed = f"{chip.bandwidth / 1e9:g} GB/s" if chip.bandwidth else "bandwidth not public"
    yield "kind", f"{chip.kind}, {'' if chip.datacentre else 'not '}marketed for data centres"
    yield "memory", f"{' '.join(filter(None, (memory, chip.memory_type)))}, {speed}"
    rates = ", ".join(f"{name} {rate / 1e12:g}" for name, rate in chip.flops.items())
    yield "compute", f"{rates}; dense 10^12 operations per second" if rates else "no rate is public"
    if chip.ridge:
        yield "balance", f"{chip.ridge:.0f} bf16 operations per byte of memory traffic"
    if chip.interconnect:
        yield "links", f"{chip.interconnect / 1e9:g} GB/s, both directions together"
    area = f"{chip.die_mm2:g} mm2" if chip.die_mm2 else "area not public"
    yield "die", ", ".join(filter(None, (area, chip.die_note, chip.process)))
    if chip.tdp_w:
        yield "power", f"{chip.tdp_w:g} W"
    if chip.notes:
        yield "notes", chip.notes
    doubts = " and ".join({"die": "die area", "compute": "compute figures"}[word] for word in chip.doubtful)
    yield "confidence", chip.confidence + (f"; {doubts}: low" if doubts else "")
    yield "sources", "; ".join(chip.sources) or "none given"


def _headline(result: Classification) -> str:
    letter = ", but a licence by letter" if result.by_letter else ""
    verdict = f"would be {result.verdict} if it were a US part" if result.comparison_only else result.verdict
    return f"US export rules on {result.on}: {verdict}{letter}"


def _rule(result: Classification) -> Iterator[tuple[str, str]]:
    if result.rule is not None:
        yield "rule", f"{result.rule.title}; since {result.rule.start} ({result.rule.source})"
    yield "TPP", result.tpp_how
    yield "PD", result.density_how
    for check in result.checks:
        yield check.paragraph, _check(check)
    for reason in result.reasons:
        yield "so", reason
    yield "for China", result.licence
    if result.chip.maker_class:
        agrees = {True: "; agrees", False: "; disagrees: believe its maker", None: ""}[result.maker_agrees]
        tpp = f", TPP {result.chip.maker_tpp:g}" if result.chip.maker_tpp else ""
        yield "its maker", f"{result.chip.maker_class}{tpp}{agrees} ({result.chip.maker_source})"


def _check(check: Check) -> str:
    """ "no   asks TPP >= 1600 and PD >= 5.92; PD is 2.91": the answer, the limits, and the figures that decide."""
    joint = " or " if check.any_of else " and "
    asked = joint.join(f"{each.what} {each.sign} {each.limit:g}{_UNITS[each.what]}" for each in check.conditions)
    deciding = {each.what: _value(each) for each in check.conditions if each.met is check.met}
    return (
        f"{_ANSWER[check.met]:<4} asks {asked}; {', '.join(f'{what} is {value}' for what, value in deciding.items())}"
    )


def _value(condition: Condition) -> str:
    return condition.shown + ("" if condition.value is None else _UNITS[condition.what])


def _effects(effects: Iterable[Effect], width: int) -> Iterator[str]:
    for effect in effects:
        state = {True: "applies", False: "does not apply", None: "unclear"}[effect.applies]
        grade = _GRADES[effect.rule.grade]
        yield from _bullets([f"{effect.rule.start}, {effect.rule.title} ({effect.rule.source}{grade})"], width)
        for check in effect.checks:
            yield from textwrap.wrap(_check(check), width, initial_indent="    ", subsequent_indent=" " * 9)
        words = f"{state}: {effect.text}" if effect.text else state
        yield from textwrap.wrap(words, width, initial_indent="    ", subsequent_indent="    ")


def _rows(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    for label, text in rows:
        indent = " " * (_LABEL + 2)
        yield from textwrap.wrap(text, width, initial_indent=f"  {label:<{_LABEL}}", subsequent_indent=indent)


def _bullets(texts: Iterable[str], width: int) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, width, initial_indent="  - ", subsequent_indent="    ")
