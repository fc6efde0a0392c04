"""Packed weights in `logits`, `ls`, `show` and `rm`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from freehold import packed_cache
from freehold.hub.packed import packed_place
from freehold.hub.store import Manifest, Store
from golden_models import GOLDEN


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    return Path(shutil.copytree(GOLDEN / "gpt_oss", tmp_path / "model"))


def test_packed_weights_of_a_model_elsewhere(freehold: Run, model: Path, tmp_path: Path, store_home: Path) -> None:
    ids, out = tmp_path / "ids.npy", tmp_path / "out.npy"
    golden = GOLDEN / "gpt_oss" / "golden.npz"
    np.save(ids, np.load(golden)["input_ids"].ravel()[:4])
    assert "not kept yet" in freehold("show", str(model)).out
    assert freehold("logits", str(model), "--ids", str(ids), "--out", str(out)).status == 0
    size = packed_place(model, Store()).file.stat().st_size
    assert json.loads(freehold("show", str(model), "--json").out)["packed_bytes"] == size
    assert re.search(r"^packed weights +2\.", freehold("show", str(model)).out, re.MULTILINE)
    outcome = freehold("ls")
    assert "more are packed weights of models elsewhere" in outcome.err
    assert str(store_home / "packed") in outcome.err
    assert json.loads(freehold("ls", "--json").out) == []


def test_packed_weights_of_a_stored_model(freehold: Run, store_home: Path) -> None:
    store = Store()
    with store.lock("tiny"), store.staging("tiny") as staging:
        (staging / "model").mkdir()
        (staging / "model" / "m.gguf").write_bytes(b"GGUF")
        facts = ("tiny", "m.gguf", "gguf", 4, "0" * 64, "MIT", "test", "2026-01-01T00:00:00Z")
        path = store.commit(staging / "model", Manifest(*facts))
    assert "packed" not in freehold("ls").out
    packed = packed_place(path, store).file
    packed.write_bytes(bytes(5000))
    assert "5.0 kB of it packed weights" in freehold("ls").out
    [row] = json.loads(freehold("ls", "--json").out)
    assert row["packed_bytes"] == 5000
    assert row["bytes"] > 5000
    outcome = freehold("rm", "tiny")
    assert outcome.status == 0
    assert not packed.exists()
    assert list((store_home / "models").iterdir()) == []
