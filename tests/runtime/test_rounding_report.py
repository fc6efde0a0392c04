"""What a user hears of the rounding that was asked for: measured once, remembered, or said why not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from freehold import load, loading, models
from freehold.cli import app
from freehold.hub import Store
from freehold.hub.packed import packed_place
from freehold.models.divergence import RoundingCost
from freehold.rounding_report import MAX_TOKENS, PASSAGE, CostNote, report_rounding
from golden_models import FAMILIES, expected_of
from packed_models import copy_golden
from tiny_vocabulary import tokenizer_json

COST = RoundingCost(0.0312, 0.958, 128)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FREEHOLD_PACKED", raising=False)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A golden checkpoint that can read."""
    path = copy_golden("llama", tmp_path)
    (path / "tokenizer.json").write_text(tokenizer_json())
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every measurement from here on."""
    found: list[int] = []
    measure = models.measure_cost

    def counted(checkpoint: Any, loaded: Any, tokens: Sequence[int], **options: Any) -> RoundingCost:
        found.append(len(tokens))
        return measure(checkpoint, loaded, tokens, **options)

    monkeypatch.setattr(loading, "measure_cost", counted)
    return found


def heard(model: Path, **options: Any) -> list[str]:
    """What a load tells, and that the model says the same of itself."""
    told: list[str] = []
    with load(model, note=told.append, **options) as local:
        assert told == ([local.rounded] if options.get("weights") in ("q8", "q4") else [])
    return told


def costs_path(model: Path) -> Path:
    return packed_place(model, Store()).costs


def test_it_is_measured_once_for_each_rounding(model: Path, measured: list[int]) -> None:
    first = heard(model, weights="q8")
    assert len(measured) == 1
    assert heard(model, weights="q8") == first
    assert len(measured) == 1
    other = heard(model, weights="q4")
    assert len(measured) == 2
    assert other != first
    assert (heard(model, weights="q8"), heard(model, weights="q4")) == (first, other)
    assert len(measured) == 2
    assert first[0].startswith("weights rounded to q8 (1.4 MB for 2.6 MB): KL ")
    assert f"({measured[0]} tokens)" in first[0]


def test_what_changes_the_weights_is_measured_again(model: Path, measured: list[int]) -> None:
    heard(model, weights="q8")
    os.utime(model / "model.safetensors", ns=(1, 1))
    heard(model, weights="q8")
    assert len(measured) == 2


@pytest.mark.parametrize("weights", ["auto", "native"])
def test_who_did_not_ask_hears_nothing(model: Path, measured: list[int], weights: str) -> None:
    assert heard(model, weights=weights) == []
    assert measured == []


def test_it_need_not_be_measured(model: Path, measured: list[int]) -> None:
    assert heard(model, weights="q4", measure_rounding=False) == ["weights rounded to q4 (0.8 MB for 2.6 MB)"]
    assert measured == []
    heard(model, weights="q4")
    assert ": KL " in heard(model, weights="q4", measure_rounding=False)[0]  # known from before
    assert len(measured) == 1


def test_without_a_cache_nothing_is_left_behind(model: Path, measured: list[int], home: Path) -> None:
    for _ in range(2):
        heard(model, weights="q8", packed_cache=False)
    assert len(measured) == 2
    assert not home.exists()


def test_without_a_tokenizer_there_is_a_remark(tmp_path: Path, measured: list[int]) -> None:
    told = heard(copy_golden("llama", tmp_path), weights="q8")
    assert told == [
        "weights rounded to q8 (1.4 MB for 2.6 MB); what that costs is not measured, because the checkpoint has no "
        "tokenizer"
    ]
    assert measured == []


def test_the_oracle_rounds_nothing(model: Path, measured: list[int]) -> None:
    (told,) = heard(model, weights="q4", precision="reference")
    assert told.startswith("q4 rounds nothing here")
    assert measured == []


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_weights_are_not_taken_for_others(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.packed_cache.MIN_BYTES", 0)
    path, ids = copy_golden(family, tmp_path), expected_of(family)["input_ids"].ravel().tolist()
    for packed_cache in (True, False):
        logits = []
        for weights in ("native", "q8", "native"):
            with load(path, weights=weights, packed_cache=packed_cache) as local:
                logits.append(np.array(local.logits(ids)))
        assert np.array_equal(logits[0], logits[2])
        assert not np.array_equal(logits[0], logits[1])


def test_a_measurement_that_is_broken_off_frees_the_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def interrupted(*_: Any, **__: Any) -> RoundingCost:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "measure_cost", interrupted)
    monkeypatch.setattr("freehold.models.loader.LoadedModel.close", lambda self: closed.append(self))
    with pytest.raises(KeyboardInterrupt):
        load(model, weights="q8")
    assert len(closed) == 1
    assert not costs_path(model).exists()


def test_progress_names_the_measurement(model: Path) -> None:
    seen: dict[str, list[int]] = {}

    def progress(what: str, done: int, total: int) -> None:
        assert done <= total
        seen.setdefault(what, []).append(done)

    load(model, weights="q8", progress=progress).close()
    assert list(seen) == ["loading llama", "measuring what rounding costs llama"]
    assert all(done == sorted(done) for done in seen.values())


DAMAGE: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "no JSON": lambda note, key: "{",
    "no object": lambda note, key: "[]",
    "deep": lambda note, key: "[" * 50_000,
    "other source": lambda note, key: json.dumps(note | {"source": "x"}),
    "no costs": lambda note, key: json.dumps(note | {"costs": None}),
    "no cost": lambda note, key: json.dumps(note | {"costs": {key: 3}}),
    "other fields": lambda note, key: json.dumps(note | {"costs": {key: {"kl": 0.1}}}),
    "a text": lambda note, key: json.dumps(note | {"costs": {key: note["costs"][key] | {"kl": "0.1"}}}),
    "NaN": lambda note, key: json.dumps(note | {"costs": {key: note["costs"][key] | {"kl": float("nan")}}}),
    "too large": lambda note, key: json.dumps(note | {"costs": {key: note["costs"][key] | {"agreement": 1.5}}}),
    "a flag": lambda note, key: json.dumps(note | {"costs": {key: note["costs"][key] | {"n_tokens": True}}}),
    "long": lambda note, key: json.dumps(note) + " " * (1 << 16),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_notes_are_not_believed(damage: str, model: Path) -> None:
    note = CostNote(model, Store(), "policy")
    note.write(COST)
    assert note.read() == COST
    assert CostNote(model, Store(), "other policy").read() is None
    whole = json.loads(costs_path(model).read_text())
    costs_path(model).write_text(DAMAGE[damage](whole, next(iter(whole["costs"]))))
    assert note.read() is None
    note.write(COST)
    assert note.read() == COST


def test_links_are_not_followed(model: Path, tmp_path: Path) -> None:
    note, mine = CostNote(model, Store(), "policy"), tmp_path / "mine"
    note.write(COST)
    costs_path(model).rename(mine)
    costs_path(model).symlink_to(mine)
    before = mine.read_bytes()
    assert note.read() is None
    note.write(RoundingCost(1.0, 0.5, 9))
    assert mine.read_bytes() == before
    assert not costs_path(model).is_symlink()


def test_a_folder_that_cannot_be_written_costs_nothing(model: Path, home: Path) -> None:
    home.write_text("in the way")
    note = CostNote(model, Store(), "policy")
    note.write(COST)
    assert note.read() is None


def test_the_sentence() -> None:
    said = report_rounding("weights rounded to q4 (4.9 GB for 15.2 GB)", "q4", FakeTokenizer(), lambda ids: COST, None)
    assert said == "weights rounded to q4 (4.9 GB for 15.2 GB): KL 0.031 nats, same first choice 96 % (128 tokens)"


class FakeTokenizer:
    add_bos, bos_id = True, 7

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_the_passage_begins_as_prompts_do() -> None:
    asked: list[Sequence[int]] = []

    def measure(ids: Sequence[int]) -> RoundingCost:
        asked.append(ids)
        return COST

    report_rounding("rounded", "q8", FakeTokenizer(), measure, None)
    assert asked == [[7, *PASSAGE.read_bytes()][:MAX_TOKENS]]


def test_the_command_line_says_it(model: Path, tmp_path: Path) -> None:
    ids, out = tmp_path / "ids.npy", tmp_path / "out.npy"
    np.save(ids, np.arange(4))
    arguments = ["logits", str(model), "--ids", str(ids), "--out", str(out), "--weights"]
    result = CliRunner().invoke(app, [*arguments, "q8"])
    assert result.exit_code == 0
    assert "freehold: weights rounded to q8 (1.4 MB for 2.6 MB): KL 0." in result.stderr
    assert " nats, same first choice " in result.stderr
    assert "rounded" not in CliRunner().invoke(app, [*arguments, "native"]).stderr
    result = CliRunner().invoke(app, [*arguments, "q4", "--no-measure"])
    assert "weights rounded to q4 (0.8 MB for 2.6 MB)\n" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "q5"])
    assert result.exit_code == 2
    assert "'q5' is not one of" in result.stderr


def test_show_knows_the_rounded_size(model: Path) -> None:
    facts = [
        json.loads(CliRunner().invoke(app, ["show", str(model), "--json", "--weights", word]).stdout)
        for word in ("native", "q8")
    ]
    assert facts[0]["rounded"] == ""
    assert facts[1]["rounded"] == "weights rounded to q8 (1.4 MB for 2.6 MB)"
    assert facts[1]["memory"]["weights_bytes"] < 0.54 * facts[0]["memory"]["weights_bytes"]
