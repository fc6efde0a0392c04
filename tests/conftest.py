"""What every test may use: SmolLM2, pulled into a store of its own on first use and kept for the next run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_home() -> Path:
    """A model store that holds smollm2; FREEHOLD_TEST_HOME names another place than the user's cache directory."""
    from freehold.hub.sources import pull
    from freehold.hub.store import Store

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("FREEHOLD_TEST_HOME") or cache / "freehold-tests")
    pull("smollm2", Store(home))
    return home


@pytest.fixture(scope="session")
def smollm2_path(smollm2_home: Path) -> Path:
    """SmolLM2-135M-Instruct, Q4_1: the .gguf file."""
    from freehold.hub.store import Store

    path = Store(smollm2_home).path("smollm2")
    return path if path.suffix == ".gguf" else next(path.glob("*.gguf"))
