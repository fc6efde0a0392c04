"""docs/cli.md says what the program's help says, and names every environment variable."""

from __future__ import annotations

import runpy
from pathlib import Path

from freehold import settings

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_what_the_generator_writes() -> None:
    expected = runpy.run_path(str(DOCS / "generate_cli.py"))["render"]()
    written = (DOCS / "cli.md").read_text("utf-8")
    assert written == expected, "docs/cli.md is out of date: run python docs/generate_cli.py"


def test_every_variable_is_listed() -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    assert all(f"    {name} " in text for name in settings._NAMES)
