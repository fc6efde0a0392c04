"""The commands that take a model, given one part of it: what they say and compute is that of the whole file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Run
from freehold.weights.synth import write_checkpoint
from gguf_split import part_name, save_split
from tiny_shapes import tiny


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One file with random weights and a tokenizer."""
    return write_checkpoint(tiny("smollm2"), tmp_path / "whole", container="gguf")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return save_split(whole, tmp_path / "parts", "m", 3, empty_first=True)


def read_json(freehold: Run, *args: str) -> Any:
    outcome = freehold(*args, "--json")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_show_and_plan_count_all_parts(
    freehold: Run, whole: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_MEMORY", "2G")  # or the facts change with what other processes leave

    def seen(model: Path) -> dict[str, Any]:
        plan = read_json(freehold, "plan", str(model), "--chip", "H20")["plans"][0]
        return {**read_json(freehold, "show", str(model)), "need": plan["fits"]["need_bytes"]}

    expected = seen(whole)
    for model, path, name in (
        (parts[0], parts[0], "m"),
        (parts[2], parts[0], "m"),
        (parts[0].parent,) * 2 + ("parts",),
    ):
        assert seen(model) == {**expected, "path": str(path), "name": name}
    assert expected["bytes"] > 80_000


def test_logits_and_bench(freehold: Run, whole: Path, parts: list[Path], tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(7, 300, 40))
    for model, out in ((whole, "whole.npy"), (parts[1], "parts.npy")):
        assert (
            freehold("logits", str(model), "--ids", str(tmp_path / "ids.npy"), "--out", str(tmp_path / out)).status == 0
        )
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "parts.npy"))
    words = ("--pp", "8", "--tg", "2", "--depth", "1", "--runs", "1")
    facts = [read_json(freehold, "bench", str(model), *words) for model in (whole, parts[1])]
    assert facts[0]["weight_bytes"] == facts[1]["weight_bytes"]


def test_into_the_store_and_out_of_it(
    freehold: Run, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [part.name for part in parts]
    assert freehold("pull", str(parts[1])).status == 0
    assert [row["name"] for row in read_json(freehold, "ls")] == ["m"]
    assert [file["name"] for file in read_json(freehold, "export", "m", str(tmp_path / "m.tar"))["files"]] == names
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "other"))
    assert freehold("import", str(tmp_path / "m.tar")).out == f"{tmp_path / 'other/models/m' / names[0]}\n"
    assert freehold("verify").out.count(" ok") == 3
    (tmp_path / "other/models/m" / names[2]).write_bytes(b"GGUF")
    for args in (("verify",), ("show", "m"), ("bench", "m")):
        outcome = freehold(*args)
        assert outcome.status != 0
        assert names[2] in outcome.out + outcome.err


MISSING = f"1 of the 3 parts of this model are missing beside it: '{part_name('m', 2, 3)}'"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("run", "-m"), MISSING),
        (("show",), MISSING),
        (("bench",), MISSING),
        (("plan",), MISSING),
        (("serve",), f"{part_name('m', 2, 3)} cannot be read: No such file"),
        (("pull",), f"lacks {part_name('m', 2, 3)}"),
    ],
)
def test_a_missing_part_costs_one_line(freehold: Run, parts: list[Path], command: tuple[str, ...], said: str) -> None:
    parts[2].unlink()
    outcome = freehold(*command, str(parts[1]), *(["Hello"] if command[0] == "run" else []))
    assert (outcome.status, outcome.out) == (2, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
