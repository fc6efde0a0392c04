"""The programs in examples/ do what they say, on SmolLM2."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(smollm2_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call an example's main and return what it printed."""
    monkeypatch.setenv("FREEHOLD_HOME", str(smollm2_home))

    def call(name: str, *args: str) -> str:
        runpy.run_path(str(EXAMPLES / name))["main"](*args)
        return capsys.readouterr().out

    return call


def test_chat(run: Any) -> None:
    assert "Paris" in run("chat.py")


def test_stream(run: Any) -> None:
    assert "\n(cancelled: " in run("stream.py")


def test_compare_logits(run: Any, smollm2_path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(1000, 1012))
    text = run("compare_logits.py", str(smollm2_path), str(tmp_path / "ids.npy"))
    assert text.startswith("12 positions: mean KL ")
    assert float(text.split("mean KL ")[1].split()[0]) < 1e-3


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"chat.py", "stream.py", "compare_logits.py"}
