"""A model of the store counts as in use from its load to its close, and not after a load that failed."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from freehold.errors import FreeholdError
from freehold.hub.store import Store
from freehold.hub.usage import users
from freehold.loading import load
from golden_models import GOLDEN
from stored_models import put_model


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "store"))
    files = {path.name: path.read_bytes() for path in (GOLDEN / "gpt_oss").iterdir() if path.suffix != ".npz"}
    put_model(Store(), "tiny", files)
    return Store()


def test_from_load_to_close(store: Store) -> None:
    model = load("tiny", context=64, threads=1)
    assert users("tiny", store) == [os.getpid()]
    model.close()
    assert users("tiny", store) == []


def test_a_failed_load_uses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "16M")
    with pytest.raises(FreeholdError):
        load("tiny", context=64, threads=1)
    gc.collect()
    assert users("tiny", store) == []
