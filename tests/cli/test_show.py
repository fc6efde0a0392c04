"""`freehold show`: parameters, classes and memory from files, and from the catalogue's shapes without any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from freehold.hub.store import Store
from freehold.models import load_model
from freehold.weights import open_checkpoint
from golden_models import GOLDEN
from stored_models import SAFETENSORS, put_model

KEYS = {
    *("name", "architecture", "layers", "context", "vocabulary", "parameters", "parameters_per_token", "experts"),
    *("formats", "classes", "path", "container", "bytes", "chat_template", "rounded", "packed_bytes", "licence"),
    *("memory", "estimate", "remedy"),
}


def show(freehold: Run, model: str) -> dict[str, Any]:
    outcome = freehold("show", model, "--json")
    assert outcome.status == 0, outcome.err
    facts: dict[str, Any] = json.loads(outcome.out)
    assert set(facts) == KEYS
    return facts


@pytest.mark.parametrize("directory", ["gpt_oss", "deepseek_v2_lite", "deepseek_v3_fp8", "glm4_moe"])
def test_classes_and_formats_add_up(freehold: Run, directory: str) -> None:
    facts = show(freehold, str(GOLDEN / directory))
    whole = pytest.approx(facts["bytes"], rel=1e-3)  # of FP8, rows share scales: a matrix's own bytes are rounded
    assert sum(row["bytes"] for row in facts["classes"]) == whole
    assert sum(row["parameters"] for row in facts["classes"]) == facts["parameters"]
    for row in facts["classes"]:
        assert sum(row["formats"].values()) == row["bytes"]
    assert sum(one["bytes"] for one in facts["formats"].values()) == whole
    assert {"embedding", "head", "attention", "routed experts", "router", "norms"} <= {
        row["class"] for row in facts["classes"]
    }
    with open_checkpoint(GOLDEN / directory) as checkpoint:
        memory = facts["memory"]
        assert memory["weights_bytes"] == pytest.approx(load_model(checkpoint).n_bytes, rel=0.01)
    assert memory["weights_bytes"] < memory["peak"]["bytes"] <= memory["peak"]["first_bytes"]
    assert memory["peak"]["bytes"] < memory["weights_bytes"] + memory["working_bytes"] + memory["kv_bytes_full_context"]
    assert facts["estimate"] is None


def test_active_parameters_are_what_one_token_is_multiplied_with(freehold: Run) -> None:
    facts = show(freehold, str(GOLDEN / "gpt_oss"))
    sizes = {row["class"]: row["parameters"] for row in facts["classes"]}
    share = facts["experts"]["per_token"] / facts["experts"]["total"]
    idle = sizes["embedding"] + sizes["routed experts"] * (1 - share)
    assert facts["parameters_per_token"] == pytest.approx(facts["parameters"] - idle, rel=1e-3)
    assert facts["chat_template"] == {"kind": "harmony", "thinking": True, "calls": "harmony"}


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [("gpt-oss:20b", 20.915e9, 3.61e9), ("qwen3:30b", 30.53e9, 3.04e9), ("llama3.1:8b", 8.03e9, 7.5e9)],
)
def test_a_model_that_is_not_here(freehold: Run, name: str, parameters: float, active: float) -> None:
    facts = show(freehold, name)
    assert facts["parameters"] == pytest.approx(parameters, rel=1e-3)
    assert facts["parameters_per_token"] == pytest.approx(active, rel=2e-3)
    assert facts["path"] is None
    assert "no file was read" in facts["estimate"]
    assert sum(row["bytes"] for row in facts["classes"]) == facts["bytes"]
    text = freehold("show", name).out
    assert "estimate" in text
    assert "of KV cache per token" in text


def test_an_estimate_of_a_file_in_another_format(freehold: Run) -> None:
    facts = show(freehold, "smollm2")
    assert facts["bytes"] == facts["memory"]["weights_bytes"] == 98_362_432
    assert list(facts["formats"]) == ["Q4_1"]
    assert "shares of the file's" in facts["estimate"]
    assert "`freehold pull smollm2`" in facts["remedy"]


def test_a_stored_model_has_its_recorded_licence(freehold: Run, store_home: Path) -> None:
    files = {
        path.name: path.read_bytes()
        for path in (GOLDEN / "gpt_oss").iterdir()
        if path.name in SAFETENSORS or path.suffix == ".safetensors"
    }
    put_model(Store(store_home), "tiny", files)
    facts = show(freehold, "tiny")
    assert (facts["name"], facts["licence"]) == ("tiny", "MIT")


def test_a_config_that_does_not_say_enough(freehold: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(GOLDEN / "gpt_oss", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    del config["num_attention_heads"]
    (model / "config.json").write_text(json.dumps(config))
    facts = show(freehold, str(model))
    assert facts["parameters"]
    assert (facts["parameters_per_token"], facts["memory"]["kv_bytes_per_token"]) == (None, None)
    assert "weights" in freehold("show", str(model)).out


def test_budgets_are_told(freehold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "13G")
    assert "fits with a context of" in freehold("show", "gpt-oss:20b").out
    assert "does not fit" in freehold("show", "qwen3:235b").out
