"""What a command says on the terminal: safe model text, notes, progress.

Owns the two streams' manners: standard output carries the answer and nothing else, standard error carries notes and
progress. Model output is untrusted, so what goes to a terminal loses its power to steer it. Knows nothing of models.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}  # ESC becomes a visible U+241B
_PICTURES[0x7F] = 0x2421
_PICTURES.update(dict.fromkeys(range(0x80, 0xA0), 0xFFFD))  # C1: 0x9B alone opens a control sequence on some terminals

QUIET_SECONDS = 0.4
"""Work that ends sooner shows no bar: one that flashes by informs nobody, and importing rich takes 0.1 s. Lines in a
log wait ten times as long."""


def printable(text: str) -> str:
    """`text` with control characters made visible and powerless; newline and tab stay. Works piece by piece."""
    return text.translate(_PICTURES)


def note(text: str) -> None:
    """One line for the user on standard error."""
    print(f"freehold: {printable(text)}", file=sys.stderr, flush=True)


def write_answer(text: str) -> None:
    """Model text to standard output: defanged on a terminal, byte for byte through a pipe."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_aside(text: str) -> None:
    """What is shown beside the answer, dimmed: on the terminal that has the answer, else on standard error."""
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr
    plain = not stream.isatty() or os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    # Switched off again after every piece, so that an interruption leaves nothing dimmed behind.
    stream.write(printable(text) if plain else f"\x1b[2m{printable(text)}\x1b[22m")
    stream.flush()


def open_missing_streams() -> None:
    """Give a program that was started without standard output or error (`>&-`) one that leads nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the program ends


def drop_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush cannot fail on a closed pipe."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a file descriptor has nothing to flush to
        pass
    finally:
        os.close(devnull)


def human_bytes(n_bytes: float) -> str:
    """A byte count for people, in powers of 1000: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def human_count(count: int) -> str:
    """A count for people: 134.5 M."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell; control characters of foreign files are made visible."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


class Progress:
    """Bytes done of a total, on standard error: a bar on a terminal, elsewhere a line at each quarter.

    Call it with (done, total); `total` 0 means unknown. Use it as a context manager, so that the bar is always closed.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._bar: RichProgress | None = None
        self._quarter = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen. Closing twice does nothing."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._start
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            if elapsed > QUIET_SECONDS:
                self._draw(done, total)
        elif elapsed > 10 * QUIET_SECONDS:
            self._line(done, total)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            # Slow to import, and needed only by work long enough to watch.
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._what, total=total or None)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)

    def _line(self, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 0
        if quarter > self._quarter:
            self._quarter = quarter
            note(f"{self._what}: {25 * quarter} % of {human_bytes(total)}")


class Stages:
    """One Progress after another, as work goes from fetching to loading. A context manager, called with (what, done,
    total).
    """

    def __init__(self) -> None:
        self._what = ""
        self._progress: Progress | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen. Closing twice does nothing."""
        if self._progress is not None:
            self._progress.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is None or what != self._what:
            self.close()
            self._what, self._progress = what, Progress(what)
        self._progress(done, total)
