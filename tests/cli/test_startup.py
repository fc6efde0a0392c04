"""The program as a process: what it imports, how it ends, how it is called."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

SLOW = {"numpy", "tokenizers", "jinja2", "prompt_toolkit", "rich", "psutil", "huggingface_hub", "freehold.runtime"}


def python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\n"
        "from freehold.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('MODULES', *sys.modules)"
    )
    words = python(code).stdout.split("MODULES")[1].split()
    assert "freehold.cli" in words
    assert not SLOW & set(words)


def test_import_is_a_blink() -> None:
    words = python("import freehold, sys; print(*sys.modules)").stdout.split()
    assert "freehold" in words
    assert not (SLOW | {"typer"}) & set(words)


def test_module_and_version() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "freehold", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    import freehold

    assert (result.returncode, result.stdout) == (0, f"freehold {freehold.__version__}\n")


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    code = (
        "import sys\n"
        "from freehold.cli import main\n"
        "from freehold.terminal import report\n"
        "report.list_models = lambda everything: [{}]\n"
        "report.render_models = lambda rows: 'x\\n' * 1_000_000\n"
        "sys.argv = ['freehold', 'ls']\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"x\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed_from_the_start_is_no_bug(closed: str) -> None:
    code = (
        f"import sys\nsys.{closed} = None\nsys.argv = ['freehold', 'rm', 'nothing']\n"
        "from freehold.cli import main\nmain()"
    )
    assert python(code).returncode == 2
