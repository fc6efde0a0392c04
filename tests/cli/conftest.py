"""The command line in this process, around a scripted model; nothing is fetched, no weights are read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from command_line import Loads, Outcome, Pipe, Run
from freehold.cli import app
from freehold.runtime import LocalModel
from scripted_model import scripted


@pytest.fixture(autouse=True)
def store_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, and no wishes from the environment."""
    for name in (
        "FREEHOLD_DEBUG",
        "FREEHOLD_ISA",
        "FREEHOLD_MEMORY",
        "FREEHOLD_MODEL",
        "FREEHOLD_PACKED",
        "FREEHOLD_THREADS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def freehold() -> Run:
    """Run a command line: freehold("run", "Hello")."""

    def call(*args: str) -> Outcome:
        result = CliRunner().invoke(app, list(args))
        return Outcome(result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode())

    return call


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    """Let every command load a scripted model: loads("Paris"). Returns the list of load() calls."""
    opened: list[LocalModel] = []

    def install(answer: Any = "Paris", **options: Any) -> Any:
        calls: list[dict[str, Any]] = []

        def load(model: Any, **wishes: Any) -> Any:
            calls.append({"model": model, **wishes})
            sizes = {"context": wishes.get("context") or 256, "n_sequences": wishes.get("conversations", 1)}
            opened.append(scripted(answer, **{**sizes, **options}))
            return opened[-1]

        monkeypatch.setattr("freehold.terminal.opening.load", load)
        return calls

    yield install
    for model in opened:
        model.close()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    """Put bytes on standard input as `terminal.words` sees it."""

    def install(data: bytes, mode: int = 0o100000) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr(stdin, "fileno", lambda: 0)
        monkeypatch.setattr("freehold.terminal.words.sys", SimpleNamespace(stdin=stdin))
        fake_os = SimpleNamespace(name="posix", fstat=lambda fd: SimpleNamespace(st_mode=mode))
        monkeypatch.setattr("freehold.terminal.words.os", fake_os)

    return install
