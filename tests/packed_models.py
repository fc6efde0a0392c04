"""Loading the golden checkpoints with packed weights kept, for the tests of that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from freehold import load
from freehold.hub import Store
from freehold.hub.packed import packed_place
from freehold.runtime import LocalModel
from golden_models import GOLDEN, expected_of

BEFORE, KEPT = "weights packed before", "kept for the next time"
"""What `LocalModel.load_remark` is, or ends with."""


def copy_golden(family: str, target: Path) -> Path:
    """The family's checkpoint in a directory of its own."""
    return Path(shutil.copytree(GOLDEN / family, target / family))


def packed_path(model: Path) -> Path:
    """Where the model's packed weights are kept."""
    return packed_place(model, Store()).file


def leftovers(model: Path) -> list[str]:
    """The files in the folder of the model's packed weights."""
    return sorted(path.name for path in packed_path(model).parent.glob("*") if path.name != "origin")


def logits_of(model: Path, local: LocalModel) -> np.ndarray:
    """Logits [n, vocab] of the checkpoint's golden ids."""
    result: np.ndarray = local.logits(expected_of(model.name)["input_ids"].ravel().tolist())
    return result


def run(model: Path, **options: Any) -> tuple[np.ndarray, str]:
    """Logits of a fresh load, and what became of its packed weights."""
    with load(model, **options) as local:
        found = logits_of(model, local)
    return found, local.load_remark
