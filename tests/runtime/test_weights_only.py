"""A checkpoint without a tokenizer: logits work, text says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import freehold
from freehold.cli import app
from freehold.errors import NotFoundError
from freehold.models import residence
from freehold.weights import open_checkpoint

GOLDEN = Path(__file__).parent.parent / "golden" / "llama"


@pytest.mark.parametrize("precision", ["reference", "exact"])
def test_the_logits_command_reads_any_supported_checkpoint(tmp_path: Path, precision: str) -> None:
    golden = np.load(GOLDEN / "golden.npz")
    ids, out = tmp_path / "ids.npy", tmp_path / "logits.npy"
    np.save(ids, golden["input_ids"])
    arguments = ["logits", str(GOLDEN), "--ids", str(ids), "--out", str(out), "--precision", precision]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    logits = np.load(out)
    assert logits.dtype == np.float32
    assert np.abs(logits - golden["logits"]).max() <= {"reference": 2e-3, "exact": 0.2}[precision]


def test_text_needs_a_tokenizer() -> None:
    with freehold.load(GOLDEN) as model, pytest.raises(NotFoundError, match="tokenizer"):
        model.tokenize("hello")


def test_the_oracle_is_checked_for_what_it_takes_in_float32() -> None:
    with open_checkpoint(GOLDEN) as checkpoint:  # bfloat16 as stored
        assert residence(checkpoint, "exact").n_bytes == checkpoint.n_bytes
        assert residence(checkpoint, "reference").n_bytes == 2 * checkpoint.n_bytes
