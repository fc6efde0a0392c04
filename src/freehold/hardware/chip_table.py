"""Reading a table of processors: chips.csv of the package, or a file of the user's in the same form.

Owns the columns, their units and limits, and the messages that name a wrong cell by line and column. A user's file is
hostile until checked. Knows nothing of what a row is for: chips.py makes parts of rows, and merges them.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.errors import NotFoundError, RequestError

MAX_BYTES = 1 << 20
MAX_ROWS = 5000
MAX_TEXT = 600

KINDS = ("gpu", "workstation", "consumer", "npu", "tpu", "apu", "cpu")
CONFIDENCE = ("high", "medium", "low")
DOUBTFUL = ("die", "compute")

UNKNOWN = "unknown"
"""In a user's cell: forget the catalogue's figure. An empty cell keeps it."""


@dataclass(frozen=True)
class Row:
    """One checked row: field -> value for the cells that are not empty; None for those that say "unknown"."""

    name: str
    where: str
    fields: Mapping[str, object] = field(default_factory=dict)
    flops: Mapping[str, float | None] = field(default_factory=dict)


class _Refused(Exception):
    """What is wrong with a cell: the second half of a message."""


Parse = Callable[[str], object]


def _text(cell: str) -> str:
    if len(cell) > MAX_TEXT:
        raise _Refused(f"has {len(cell)} characters; expected at most {MAX_TEXT}")
    if not cell.isprintable():
        raise _Refused("has control characters or line breaks; expected plain text")
    return cell


def _list(cell: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in _text(cell).split(";")) if part)


def _choice(*accepted: str) -> Parse:
    def parse(cell: str) -> str:
        if cell.lower() not in accepted:
            raise _Refused(f"is {_shown(cell)}; expected {', '.join(accepted[:-1])} or {accepted[-1]}")
        return cell.lower()

    return parse


def _flag(cell: str) -> bool:
    values = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
    if cell.lower() not in values:
        raise _Refused(f"is {_shown(cell)}; expected yes or no")
    return values[cell.lower()]


def _number(unit: str, low: float, high: float, scale: float = 1.0) -> Parse:
    def parse(cell: str) -> float:
        try:
            value = float(cell) if cell.isascii() and "_" not in cell else math.nan
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # NaN neither
            raise _Refused(f"is {_shown(cell)}; expected a number of {unit} from {low:g} to {high:g}")
        return value * scale

    return parse


def _year(cell: str) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) == 4 and 1990 <= int(cell) <= 2100):
        raise _Refused(f"is {_shown(cell)}; expected a year such as 2025")
    return int(cell)


def _doubtful(cell: str) -> tuple[str, ...]:
    parse = _choice(*DOUBTFUL)
    return tuple(str(parse(part)) for part in _list(cell))


_RATE = _number("10^12 operations per second, dense", 1e-3, 1e6, 1e12)

FLOPS: Mapping[str, str] = {
    "bf16_tflops": "bf16",
    "fp16_tflops": "fp16",
    "fp8_tflops": "fp8",
    "int8_tops": "int8",
    "fp6_tflops": "fp6",
    "fp4_tflops": "fp4",
    "int4_tops": "int4",
}
"""Columns of rates -> format."""

FIELDS: Mapping[str, tuple[str, Parse]] = {
    "vendor": ("vendor", _text),
    "aliases": ("aliases", _list),
    "kind": ("kind", _choice(*KINDS)),
    "datacentre": ("datacentre", _flag),
    "prc_design": ("prc_design", _flag),
    "year": ("year", _year),
    "memory_gb": ("memory_bytes", _number("GB (10^9 bytes)", 0.01, 1e5, 1e9)),
    "memory_type": ("memory_type", _text),
    "bandwidth_gbps": ("bandwidth", _number("GB/s", 0.1, 1e6, 1e9)),
    "die_mm2": ("die_mm2", _number("mm2", 1, 1e5)),
    "die_note": ("die_note", _text),
    "process": ("process", _text),
    "tdp_w": ("tdp_w", _number("watts", 0.1, 1e5)),
    "interconnect_gbps": ("interconnect", _number("GB/s", 0.1, 1e6, 1e9)),
    "maker_tpp": ("maker_tpp", _number("TPP", 0.1, 1e7)),
    "maker_class": ("maker_class", _text),
    "maker_source": ("maker_source", _text),
    "notes": ("notes", _text),
    "sources": ("sources", _list),
    "confidence": ("confidence", _choice(*CONFIDENCE)),
    "doubtful": ("doubtful", _doubtful),
}
"""Other columns but `name` -> the field of a part, and how a cell is read."""

_NEVER_UNKNOWN = ("name", "vendor", "kind", "datacentre", "prc_design", "confidence")


def read_file(path: Path) -> list[Row]:
    """The rows of a user's file. Raises NotFoundError or RequestError, which name the file, the line and the column."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; expected a table of processors (.csv)") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RequestError(f"{path}: more than {MAX_BYTES >> 20} MiB; a table of processors is far smaller")
    try:
        text = data.decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 at byte {error.start}; save the table as UTF-8") from None
    return parse_table(text, str(path))


def parse_table(text: str, source: str) -> list[Row]:
    """The rows of a table's text. Raises RequestError naming `source`, the line and the column."""
    if "\0" in text:
        raise RequestError(f"{source}: holds NUL bytes; expected a table of processors as text (.csv)")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next((cells for cells in lines if any(cell.strip() for cell in cells)), [])
        columns = _columns(header, f"{source}, line {max(lines.line_num, 1)}")
        for cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append(_row(columns, cells, f"{source}, line {lines.line_num}"))
    except csv.Error as error:
        raise RequestError(f"{source}, line {lines.line_num}: {error}; expected comma-separated values") from None
    _check_rows(rows, source)
    return rows


def _columns(header: list[str], where: str) -> list[str]:
    columns = [cell.strip().lower() for cell in header]
    known = ("name", *FIELDS, *FLOPS)
    if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
        raise RequestError(f"{where}: the columns are not separated by commas; save the table as comma-separated")
    if "name" not in columns:
        raise RequestError(f"{where}: no column `name`; expected a first line of column names, of {', '.join(known)}")
    for column in columns:
        if column not in known:
            close = difflib.get_close_matches(column[:60], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; expected {', '.join(known)}"
            raise RequestError(f"{where}: unknown column {_shown(column)}{hint}")
        if columns.count(column) > 1:
            raise RequestError(f"{where}: column `{column}` is there {columns.count(column)} times; expected once")
    return columns


def _row(columns: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(columns):
        raise RequestError(
            f"{where}: {len(cells)} cells, where the first line names {len(columns)} columns; put quotes around text "
            f"that holds commas"
        )
    given = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
    name = given.pop("name")
    if not name or not any(character.isalnum() for character in name):
        raise RequestError(f"{where}, column `name`: is {_shown(name)}; expected the name of a processor")
    values = dict(_cells({"name": name, **given}, where))
    flops = {FLOPS[column]: value for column, value in values.items() if column in FLOPS}
    fields = {FIELDS[column][0]: value for column, value in values.items() if column in FIELDS}
    return Row(name, where, fields, flops)  # type: ignore[arg-type] # _RATE gives floats


def _cells(given: Mapping[str, str], where: str) -> Iterator[tuple[str, object]]:
    """(column, value) of every cell that is not empty."""
    for column, cell in given.items():
        parse = _text if column == "name" else _RATE if column in FLOPS else FIELDS[column][1]
        try:
            if cell.lower() == UNKNOWN and column not in _NEVER_UNKNOWN:
                yield column, None
            elif cell:
                yield column, parse(cell)
        except _Refused as refused:
            raise RequestError(f"{where}, column `{column}`: {refused}") from None


def _check_rows(rows: list[Row], source: str) -> None:
    if not rows:
        raise RequestError(f"{source}: no rows; expected column names on the first line and a processor on each other")
    if len(rows) > MAX_ROWS:
        raise RequestError(f"{source}: {len(rows)} rows; expected at most {MAX_ROWS}")


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 60 else cell[:57] + "...")
