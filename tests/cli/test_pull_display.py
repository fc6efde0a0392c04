"""What `freehold pull` shows while it works."""

from __future__ import annotations

import io

import pytest

from freehold.terminal import pull
from freehold.terminal.pull import PullDisplay, describe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_words() -> None:
    assert describe(10**9, 10**10, 10**8) == "1.0 GB of 10.0 GB (10 %), 100.0 MB/s, 90 s left"
    assert describe(10**9, 10**10, 10**7) == "1.0 GB of 10.0 GB (10 %), 10.0 MB/s, 15 min left"
    assert describe(0, 10**10, 10**5) == "0 B of 10.0 GB (0 %), 100.0 kB/s, 27.8 h left"
    assert describe(5, 10, 0) == "5 B of 10 B (50 %), waiting for data"
    assert describe(5, 0, 1) == "5 B, 1 B/s"


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 16.0, 17.0, 40.0])
    monkeypatch.setattr("freehold.terminal.pull.time.monotonic", lambda: next(clock))
    with PullDisplay("downloading x") as display:
        for done in (1000, 33_000, 34_000, 90_000):
            display.show_files({"a": (done, 100_000)})
            display(done, 100_000)
    assert capsys.readouterr().err.splitlines() == [
        "freehold: downloading x: 33.0 kB of 100.0 kB (33 %), 2.0 kB/s, 34 s left",
        "freehold: downloading x: 90.0 kB of 100.0 kB (90 %), 2.2 kB/s, 4 s left",
    ]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(pull, "QUIET_SECONDS", -1.0)
    with PullDisplay("downloading [x]") as display:
        for done in (0, 50, 99):
            display(done, 200)
            display.show_files({"one\x1b[2J.safetensors": (done, 100), "two": (0, 100)})
        assert display._bars is not None
        display._bars.refresh()
        display.show_files({"one\x1b[2J.safetensors": (100, 100), "two": (1, 100)})
    shown = terminal.getvalue()
    assert "downloading [x]" in shown
    assert "\u241b[2J.safetensors" in shown
    assert "\x1b[2J.safetensors" not in shown
