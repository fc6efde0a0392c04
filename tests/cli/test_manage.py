"""rm, verify, du, prune, export and import on the command line: words, --json, exit statuses, questions."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import Run
from freehold.hub.store import MANIFEST, Store
from freehold.hub.usage import Use
from stored_models import GGUF, SAFETENSORS, archive_of, put_model, record_of


@pytest.fixture
def store(store_home: Path) -> Store:
    return Store(store_home)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make standard input a terminal on which somebody types."""

    def install(text: str) -> None:
        stdin = io.StringIO(text)
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("freehold.terminal.manage.sys", type("S", (), {"stdin": stdin, "stderr": sys.stderr}))

    return install


def read_json(freehold: Run, *args: str, status: int = 0) -> Any:
    outcome = freehold(*args, "--json")
    assert outcome.status == status, outcome.err
    return json.loads(outcome.out)


def test_rm_says_what_it_freed(freehold: Run, store: Store) -> None:
    put_model(store, "tiny")
    (store.root / "models/tiny/weights.packed").write_bytes(bytes(5000))
    outcome = freehold("rm", "tiny")
    assert (outcome.status, outcome.out) == (0, "")
    assert "removed tiny, 5." in outcome.err
    assert "5.0 kB of it packed weights" in outcome.err
    put_model(store, "a")
    put_model(store, "b")
    removed = read_json(freehold, "rm", "a", "B", "a")
    assert [set(row) for row in removed] == [{"name", "bytes", "packed_bytes"}] * 2
    assert [row["name"] for row in removed] == ["a", "b"]
    assert store.models() == []


def test_rm_asks_on_a_terminal(freehold: Run, store: Store, answer: Any) -> None:
    put_model(store, "tiny")
    for text in ("", "n\n", "nonsense\n"):
        answer(text)
        outcome = freehold("rm", "tiny")
        assert outcome.status == 0
        assert "removed" not in outcome.err
        assert store.find("tiny")
    answer("y\n")
    assert "removed tiny" in freehold("rm", "tiny").err
    put_model(store, "tiny")
    answer("")
    assert "removed tiny" in freehold("rm", "tiny", "--yes").err


def test_rm_refuses_what_is_in_use_and_all_with_it(freehold: Run, store: Store) -> None:
    put_model(store, "other")
    use = Use(put_model(store, "tiny"), store)
    outcome = freehold("rm", "other", "tiny")
    assert outcome.status == 2
    assert f"tiny is in use by process {os.getpid()}" in outcome.err
    use.release()
    assert freehold("rm", "other", "tiny").status == 0


def test_rm_of_a_linked_model_takes_the_link(freehold: Run, store: Store, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(GGUF["m.gguf"])
    put_model(store, "tiny", GGUF, {"m.gguf": tmp_path / "m.gguf"})
    [row] = read_json(freehold, "ls")
    assert row["linked_bytes"] == len(GGUF["m.gguf"])
    assert "12 B of it elsewhere" in freehold("ls").out
    assert freehold("rm", "tiny").status == 0
    assert store.find("tiny") is None
    assert (tmp_path / "m.gguf").read_bytes() == GGUF["m.gguf"]


def test_unknown_models_get_the_nearest_names(freehold: Run, store: Store, tmp_path: Path) -> None:
    put_model(store, "my-model")
    put_model(store, "org--name--q4_0")
    for command in (("rm",), ("verify",), ("export",)):
        outcome = freehold(*command, "my-modle", *([str(tmp_path / "x")] if command == ("export",) else []))
        assert (outcome.status, outcome.out) == (2, "")
        assert "did you mean my-model?" in outcome.err
    assert "did you mean smollm2" in freehold("rm", "smolm2").err
    assert "it is empty" not in freehold("rm", "zzz").err
    for name in ("../up", "a b", "", "-", "."):
        assert freehold("verify", "--", name).status == 2
    assert freehold("rm", "org/name:Q4_0").status == 0


def test_verify(freehold: Run, store: Store) -> None:
    assert "no models" in freehold("verify").out
    put_model(store, "good")
    put_model(store, "tiny", SAFETENSORS)
    rows = read_json(freehold, "verify")
    assert [(row["name"], row["ok"]) for row in rows] == [("good", True), ("tiny", True)]
    assert {file["status"] for row in rows for file in row["files"]} == {"ok"}
    (store.root / "models/tiny/config.json").write_bytes(b"[]")
    row = read_json(freehold, "verify", "tiny", status=2)[0]
    assert row["files"][0]["status"] == "wrong content"
    assert set(row["files"][0]["found"]) == set(row["files"][0]["expected"]) == {"size", "sha256"}
    outcome = freehold("verify")
    assert outcome.status == 2
    assert "wrong content" in outcome.out
    assert "damaged: tiny; fetch it again or delete it: `freehold pull tiny`" in outcome.err
    assert freehold("verify", "good").status == 0


def test_verify_tells_damage_that_no_file_shows(freehold: Run, store: Store) -> None:
    put_model(store, "tiny")
    (store.root / "models/tiny" / MANIFEST).write_bytes(b"{")
    [row] = read_json(freehold, "verify", status=2)
    assert "damaged" in row["problem"]
    assert [file["status"] for file in row["files"]] == ["ok"]
    assert "damaged" in freehold("verify").out


def test_du(freehold: Run, store: Store) -> None:
    facts = read_json(freehold, "du")
    assert (facts["models"], facts["total_bytes"]) == ([], 0)
    assert str(store.root) in freehold("du").out
    put_model(store, "tiny", SAFETENSORS)
    (store.root / "models/tiny/weights.packed").write_bytes(bytes(5000))
    facts = read_json(freehold, "du")
    [row] = facts["models"]
    assert set(row) == {"name", "bytes", "packed_bytes", "last_used"}
    assert row["packed_bytes"] == 5000
    assert facts["total_bytes"] == row["bytes"] + facts["other_bytes"] + facts["debris_bytes"]
    text = freehold("du").out
    assert "5.0 kB of it packed weights" in text
    assert "free on this disk" in text


@pytest.fixture
def untidy(store: Store) -> Store:
    """A model that was last used ten days ago, and half a download."""
    put_model(store, "tiny")
    os.utime(store.root / "models/tiny" / MANIFEST, (time.time() - 10 * 86_400,) * 2)
    (store.root / "partial/half").mkdir(parents=True)
    (store.root / "partial/half/part").write_bytes(bytes(2000))
    return store


def test_prune_shows_and_deletes_only_when_told(freehold: Run, untidy: Store) -> None:
    outcome = freehold("prune")
    assert (outcome.status, outcome.err) == (0, "")
    assert "download  half  2.0 kB  an interrupted download" in outcome.out
    assert "nothing was deleted; --yes deletes all this, 2.0 kB" in outcome.out
    facts = read_json(freehold, "prune", "--older-than", "9")
    assert not facts["deleted"]
    assert [thing["kind"] for thing in facts["things"]] == ["download", "model"]
    assert set(facts["things"][0]) == {"kind", "name", "path", "n_bytes", "reason"}
    assert untidy.partials()
    assert "2.0 kB freed" in freehold("prune", "--yes").out
    assert (untidy.partials(), len(untidy.models())) == ({}, 1)
    assert freehold("prune").out == "nothing to prune\n"
    assert read_json(freehold, "prune", "--older-than", "9", "--yes")["deleted"]
    assert untidy.models() == []


def test_prune_asks_on_a_terminal_but_not_for_json(freehold: Run, untidy: Store, answer: Any) -> None:
    answer("n\n")
    assert "nothing was deleted" in freehold("prune").out
    answer("y\n")
    assert not read_json(freehold, "prune")["deleted"]
    assert untidy.partials()
    answer("y\n")
    outcome = freehold("prune")
    assert outcome.err.count("half") == 1
    assert "2.0 kB freed" in outcome.out
    assert untidy.partials() == {}


@pytest.mark.parametrize("days", ["-1", "nan", "soon"])
def test_prune_wants_days(freehold: Run, days: str) -> None:
    assert freehold("prune", "--older-than", days).status == 2


def test_export_and_import(freehold: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(store, "tiny", SAFETENSORS)
    target = tmp_path / "tiny.tar"
    facts = read_json(freehold, "export", "tiny", str(target))
    assert (facts["name"], facts["path"], facts["bytes"]) == ("tiny", str(target), target.stat().st_size)
    assert [file["name"] for file in facts["files"]] == list(SAFETENSORS)
    outcome = freehold("export", "tiny", str(target))
    assert (outcome.status, outcome.out) == (2, "")
    assert "exists already" in outcome.err
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "other"))
    assert freehold("import", str(target)).out == f"{tmp_path / 'other/models/tiny'}\n"
    facts = read_json(freehold, "import", str(target), "--as", "second")
    assert {"name": "second", "format": "safetensors"}.items() <= facts.items()
    assert [row["name"] for row in read_json(freehold, "ls")] == ["second", "tiny"]
    assert freehold("verify").status == 0
    assert freehold("export", "second", str(tmp_path / "s.tar"), "--as", "third").out == f"{tmp_path / 's.tar'}\n"


def test_a_hostile_archive_costs_one_line(freehold: Run, store: Store, tmp_path: Path) -> None:
    data = archive_of(record_of("tiny", GGUF), GGUF)
    for wrong in (data[:600], data.replace(b"m.gguf", b"../m.g"), b"rubbish" * 100):
        (tmp_path / "x.tar").write_bytes(wrong)
        outcome = freehold("import", str(tmp_path / "x.tar"))
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert freehold("import", str(tmp_path / "none.tar")).status == 2
    assert store.models() == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store(freehold: Run, untidy: Store, tmp_path: Path) -> None:
    folders = [untidy.root, *(path for path in untidy.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        target = str(tmp_path / "x.tar")
        for reading in ("ls", "verify", "du", "prune"):
            assert freehold(reading).status == 0
        assert freehold("export", "tiny", target).status == 0
        for args in (["rm", "tiny"], ["prune", "--yes"], ["import", target, "--as", "b"]):
            outcome = freehold(*args)
            assert outcome.status == 2
            assert "FREEHOLD_HOME" in outcome.err
    finally:
        for folder in folders:
            folder.chmod(0o700)
