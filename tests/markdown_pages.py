"""Markdown for generated pages: tables, paragraphs in even lines, lists of words, numbers as people read them.

Knows no page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120


def page(sections: Iterable[str]) -> str:
    """The sections' blocks, which blank lines divide, with paragraphs, points and quotations filled to one width."""
    return "\n\n".join(_filled(block) for section in sections for block in section.strip().split("\n\n")) + "\n"


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """A block of its own; `head` has the columns' titles between bars. A column that no row fills is an oversight."""
    titles = head.split("|")
    assert all(len(row) == len(titles) for row in rows), f"rows of another length: {head}"
    assert all(any(column) for column in zip(*rows, strict=True)), f"an empty column: {head}"
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines)


def code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def unique(words: Iterable[str]) -> list[str]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(words))


def alternatives(words: Iterable[str]) -> str:
    """Each once; of those that say more than the shortest, only what they add."""
    first, *others = sorted(unique(words), key=len)
    return "; in some ".join([first, *(other.removeprefix(f"{first}, ") for other in others)])


def bound(value: float, least: float) -> str:
    """The power of ten above a value, from `least` on: no digit that another processor could change."""
    while value >= least:
        least *= 10
    return f"< {least:.0e}".replace("e-0", "e-")


def count(n: int) -> str:
    return f"{n / 1e12:.3g} T" if n >= 10**12 else f"{n / 1e9:.3g} B"


def size(n_bytes: int) -> str:
    if n_bytes < 10**9:
        return f"{n_bytes / 1e6:.0f} MB"
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes < 10**12 else f"{n_bytes / 1e12:.3g} TB"


def _filled(block: str) -> str:
    if block.startswith(("|", "#")):
        return block
    if block.startswith("- "):
        return "\n".join(_lines(point, "- ", "  ") for point in f"\n{block}".split("\n- ")[1:])
    mark = "> " if block.startswith("> ") else ""
    return _lines(block.removeprefix(mark), mark, mark)


def _lines(text: str, first: str, others: str) -> str:
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = first, others
    return wrapper.fill(" ".join(text.split()))
