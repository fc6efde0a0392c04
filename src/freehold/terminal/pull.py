"""`freehold pull`: what is fetched, how fast, and how long it will take, on standard error.

Owns the display: on a terminal a bar for every file that is under way and one for all, elsewhere a line now and then.
The work is hub.sources'.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.terminal.console import QUIET_SECONDS, human_bytes, note, printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 15.0
"""Between two lines where there is no terminal."""


class PullDisplay:
    """Bytes done and in all: of each file (`show_files`), and together (called with them). Close it, or use `with`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = self._last_line = time.monotonic()
        self._first = -1  # bytes that were there at the start: speed is about what came since
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> PullDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show_files(self, files: Mapping[str, tuple[int, int]]) -> None:
        """A bar for each file that is begun and not done; nothing while no bars are shown, or with a single file."""
        if self._bars is None or len(files) < 2:
            return
        for name, (done, total) in files.items():
            task = self._tasks.get(name)
            if 0 < done < total:
                if task is None:
                    task = self._tasks[name] = self._bars.add_task(printable(name), total=total)
                self._bars.update(task, completed=done)
            elif task is not None:
                self._bars.remove_task(self._tasks.pop(name))

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first = done
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            if now - self._start > QUIET_SECONDS:
                self._draw(done, total)
        elif now - self._last_line > LINE_SECONDS:
            self._last_line = now
            note(f"{self._what}: {describe(done, total, (done - self._first) / (now - self._start))}")

    def _draw(self, done: int, total: int) -> None:
        if self._bars is None:
            # Slow to import, and needed only by pulls long enough to watch.
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.description}", markup=False)  # names of files are foreign
            self._bars = Progress(text, *columns, console=Console(stderr=True), transient=True)
            self._tasks[""] = self._bars.add_task(printable(self._what), total=total or None)
            self._bars.start()
        self._bars.update(self._tasks[""], completed=done, total=total or None)


def describe(done: int, total: int, speed: float) -> str:
    """`1.2 GB of 13.8 GB (9 %), 52.1 MB/s, 4 min left`; speed is in bytes a second."""
    words = f"{human_bytes(done)} of {human_bytes(total)} ({100 * done // total} %)" if total else human_bytes(done)
    if speed <= 0:
        return f"{words}, waiting for data"
    seconds = (total - done) / speed
    left = (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
    return f"{words}, {human_bytes(speed)}/s" + (f", {left} left" if total else "")


def pull_model(name: str, source_file: Path | None, copy: bool) -> Path:
    """Pull `name` into the user's store, with a display; the model's file or directory."""
    from freehold.hub import Store
    from freehold.hub.sources import pull

    with PullDisplay(f"downloading {name}") as display:
        return pull(
            name,
            Store(),
            progress=display,
            files=display.show_files,
            note=note,
            source_file=source_file,
            copy=copy,
        )
