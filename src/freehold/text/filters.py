"""Jinja filters and string methods whose result can be far larger than what they are given, checked before they run.

Owns those estimates, and Hugging Face's own `tojson`. Everything else about the sandbox is in sandbox.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context

from freehold.text.metering import Budget, OverBudget, budget_of

MAX_WIDTH = 1000
"""Largest count of columns, digits or characters to strip that a template may ask for."""

MAX_PRINTF_CHARS = 10_000
MAX_PRINTF_NUMBER = 9999
"""Digits in a `%` pattern count as widths wherever they stand; a year must pass."""


def drawn(budget: Budget, items: Iterable[Any]) -> list[Any]:
    """The items as a list: each one is a step, all of them together a value."""
    result: list[Any] = []
    total = 0
    for item in items:
        budget.tick()
        result.append(item)
        total += 2 + budget.size(budget.admit(item))
        budget.check(total)
    return budget.admit(result)


def checked_method_args(budget: Budget, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before a call of the str method `name` on `text`: its arguments, an iterator among them drawn."""
    if name == "join" and args:
        items = drawn(budget, args[0])
        budget.check(budget.size(items) + len(items) * len(text))
        return items, *args[1:]
    if name == "replace" and len(args) >= 2:
        _check_replace(budget, text, str(args[0]), str(args[1]))
    elif name in ("strip", "lstrip", "rstrip") and args:
        _check_width(len(args[0] or ""))
    return args


def check_printf(budget: Budget, pattern: str, values: Any) -> None:
    """Before `pattern % values`: every number may be a width, and every value may come with every conversion."""
    if len(pattern) > MAX_PRINTF_CHARS:
        raise OverBudget(f"it formats with a pattern of more than {MAX_PRINTF_CHARS} characters")
    numbers = [int(digits[:10]) for digits in re.findall(r"\d+", pattern)]
    if "*" in pattern:
        numbers += [abs(v) for v in (values if isinstance(values, tuple) else (values,)) if isinstance(v, int)]
    if max(numbers, default=0) > MAX_PRINTF_NUMBER:
        raise OverBudget(f"it formats with a number above {MAX_PRINTF_NUMBER}")
    budget.check(len(pattern) + sum(numbers) + pattern.count("%") * budget.size(values))


def _check_replace(budget: Budget, text: str, old: str, new: str) -> None:
    budget.check(len(text) + text.count(old) * len(new))


def _check_width(number: Any) -> None:
    if isinstance(number, (int, float)) and abs(number) > MAX_WIDTH:
        raise OverBudget(f"it asks for a width or count above {MAX_WIDTH}")


@jinja2.pass_context
def _batch(context: Context, value: Any, linecount: int, fill_with: Any = None) -> Any:
    _check_width(linecount)
    return JINJA_FILTERS["batch"](value, linecount, fill_with)


@jinja2.pass_context
def _center(context: Context, value: Any, width: int = 80) -> str:
    _check_width(width)
    return str(value).center(width)


@jinja2.pass_context
def _format(context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
    budget = budget_of(context)
    values = budget.admit(kwargs or args)
    check_printf(budget, str(value), values)
    return str(value) % values


@jinja2.pass_context
def _indent(context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    n_columns = len(width) if isinstance(width, str) else width
    _check_width(n_columns)
    budget_of(context).check(len(str(value)) + (len(str(value).splitlines()) + 1) * n_columns)
    indented: str = JINJA_FILTERS["indent"](str(value), width, first, blank)
    return indented


@jinja2.pass_context
def _join(context: Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    budget = budget_of(context)
    items = drawn(budget, value if attribute is None else map(make_attrgetter(context.environment, attribute), value))
    budget.check(budget.size(items) + len(items) * len(str(d)))
    return str(d).join(map(str, items))


@jinja2.pass_context
def _replace(context: Context, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    _check_replace(budget_of(context), text, old, new)
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_context
def _round(context: Context, value: float, precision: int = 0, method: str = "common") -> float:
    _check_width(precision)
    rounded: float = JINJA_FILTERS["round"](value, precision, method)
    return rounded


@jinja2.pass_context
def _sum(context: Context, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    values = iterable if attribute is None else map(make_attrgetter(context.environment, attribute), iterable)
    numbers = [start, *drawn(budget_of(context), values)]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("sum adds numbers only")
    return sum(numbers)


@jinja2.pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers defines it: plain json.dumps, without the HTML escapes of Jinja's own."""
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "sort_keys": sort_keys}
    if indent is None and separators is None:
        return json.dumps(value, **options)
    _check_width(len(indent) if isinstance(indent, str) else indent)
    item, key = separators or (None, None)
    _check_width(len(item or "") + len(key or ""))
    encoder = json.JSONEncoder(indent=indent, separators=separators, **options)
    budget = budget_of(context)
    chunks: list[str] = []
    total = 0
    for chunk in encoder.iterencode(value):
        budget.tick()
        total += len(chunk)
        budget.check(total)
        chunks.append(chunk)
    return "".join(chunks)


@jinja2.pass_context
def _trim(context: Context, value: Any, chars: str | None = None) -> str:
    _check_width(len(chars or ""))
    return str(value).strip(chars)


FILTERS: dict[str, Callable[..., Any]] = {
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
}
