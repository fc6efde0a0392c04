"""`freehold synth`, and what the other commands say of models that are known but cannot be fetched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from tiny_shapes import tiny


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: tiny(name) for name in ("smollm2", "gpt-oss-20b")}
    monkeypatch.setattr("freehold.terminal.synth.SHAPES", shapes)


def test_it_writes_a_directory_or_one_file(freehold: Run, tmp_path: Path) -> None:
    first = freehold("synth", "gpt-oss:20b", str(tmp_path / "a"), "--layers", "1")
    assert (first.status, first.out, first.err) == (0, f"{tmp_path / 'a'}\n", "")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"] == 1
    second = freehold("synth", "GPT-OSS-20b", str(tmp_path / "b"), "--format", "gguf", "--seed", "3")
    assert (second.status, second.out) == (0, f"{tmp_path / 'b' / 'gpt-oss-20b.gguf'}\n")
    assert "seed 3" in (tmp_path / "b" / "gpt-oss-20b.gguf").read_bytes().decode("latin-1")
    facts = json.loads(freehold("show", second.out.strip(), "--json").out)
    assert (facts["layers"], facts["licence"]) == (2, "apache-2.0")


def test_both_formats_give_the_same_logits(freehold: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(7, 300, 40))
    for container in ("safetensors", "gguf"):
        path = freehold("synth", "smollm2", str(tmp_path / container), "--format", container).out.strip()
        wishes = ("--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / f"{container}.npy"))
        assert freehold("logits", path, "--precision", "reference", *wishes).status == 0
    logits = np.load(tmp_path / "safetensors.npy")
    np.testing.assert_array_equal(logits, np.load(tmp_path / "gguf.npy"))
    assert 0.5 < logits.std() < 5


def test_mistakes(freehold: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    new = str(tmp_path / "new")
    for args, words in (
        (("gpt-os:20b", new), "did you mean gpt-oss:20b"),
        (("smollm2", str(tmp_path / "full")), "not an empty directory"),
        (("smollm2", new, "--layers", "31"), "1 to 2"),
        (("smollm2", new, "--tokenizer", str(tmp_path / "none")), "does not exist"),
        (("smollm2", new, "--format", "onnx"), "'safetensors', 'gguf'"),
    ):
        outcome = freehold("synth", *args)
        assert (outcome.status, outcome.out) == (2, "")
        assert words in outcome.err
    assert not (tmp_path / "new").exists()


def test_a_model_whose_hubs_cannot_be_reached_says_what_failed(
    freehold: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for command in ("pull", "run"):
        outcome = freehold(command, "gpt-oss:20b", *(["hello"] if command == "run" else []))
        assert (outcome.status, outcome.out) == (2, "")
        assert "Hugging Face (openai/gpt-oss-20b): http://127.0.0.1:9 cannot be reached" in outcome.err
        assert "ModelScope (openai-mirror/gpt-oss-20b): 127.0.0.1: Connection refused" in outcome.err
    rows = {row["name"]: row for row in json.loads(freehold("ls", "--all", "--json").out)}
    assert rows["gpt-oss-120b"] == {
        "name": "gpt-oss-120b",
        "bytes": 65_248_815_744,
        "format": "safetensors",
        "stored": False,
        "fetchable": True,
    }
    assert rows["smollm2"]["fetchable"]
    assert "not fetched" in freehold("ls", "--all").out
