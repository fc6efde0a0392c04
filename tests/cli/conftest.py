"""The command line in this process, around a scripted model; nothing is fetched, no weights are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from freehold.cli import app
from scripted_model import scripted


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def store_home(tmp_path, monkeypatch):
    """A store of the test's own, and no wishes from the environment."""
    for name in ("FREEHOLD_DEBUG", "FREEHOLD_ISA", "FREEHOLD_MEMORY", "FREEHOLD_MODEL", "FREEHOLD_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def freehold() -> Callable[..., Outcome]:
    """Run a command line: freehold("run", "Hello")."""

    def call(*args: str) -> Outcome:
        result = CliRunner().invoke(app, list(args))
        return Outcome(result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode())

    return call


@pytest.fixture
def loads(monkeypatch):
    """Let every command load a scripted model: loads("Paris"). Returns the list of load() calls."""
    opened = []

    def install(answer="Paris", **options):
        calls = []

        def load(model, **wishes):
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
def pipe(monkeypatch):
    """Put bytes on standard input as `terminal.words` sees it."""

    def install(data: bytes, mode: int = 0o100000):
        stdin = io.TextIOWrapper(io.BytesIO(data))
        stdin.fileno = lambda: 0
        monkeypatch.setattr("freehold.terminal.words.sys", SimpleNamespace(stdin=stdin))
        fake_os = SimpleNamespace(name="posix", fstat=lambda fd: SimpleNamespace(st_mode=mode))
        monkeypatch.setattr("freehold.terminal.words.os", fake_os)

    return install
