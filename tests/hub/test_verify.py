"""Stored models, read again: each kind of damage has its word, and nothing is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.errors import ModelFileError
from freehold.hub.manifest import MANIFEST_NAME
from freehold.hub.store import MANIFEST, Store
from freehold.hub.stored import StoredModel
from freehold.hub.verify import stored_files, stored_record, verify
from stored_models import GGUF, SAFETENSORS, put_model, records


def found(store: Store, name: str = "tiny") -> StoredModel:
    model = store.find(name)
    assert model is not None
    return model


def statuses(store: Store) -> dict[str, str]:
    return {check.name: check.status for check in verify(found(store))}


@pytest.mark.parametrize("files", [GGUF, SAFETENSORS])
def test_a_whole_model_is_ok(store: Store, files: dict[str, bytes]) -> None:
    put_model(store, "tiny", files)
    (store.root / "models/tiny/weights.packed").write_bytes(b"packed")  # the store's own, which no record lists
    seen: list[tuple[int, int]] = []
    checks = verify(found(store), lambda *done: seen.append(done))
    assert [check.found for check in checks] == [check.expected for check in checks] == list(records(files))
    assert not any(check.is_damage for check in checks)
    assert seen[-1] == (sum(map(len, files.values())),) * 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_every_damage_has_its_word(store: Store) -> None:
    put_model(store, "tiny", {**SAFETENSORS, "a.json": b"a", "b.json": b"b", "c.json": b"c"})
    top = store.root / "models/tiny"
    (top / "config.json").write_bytes(b"[]")
    (top / "model.safetensors").write_bytes(b"short")
    (top / "a.json").unlink()
    (top / "b.json").unlink()
    (top / "b.json").symlink_to("config.json")
    (top / "c.json").unlink()
    os.mkfifo(top / "c.json")
    (top / "extra").write_bytes(b"extra")
    assert statuses(store) == {
        "config.json": "wrong content",
        "model.safetensors": "wrong size",
        "tokenizer.json": "ok",
        "a.json": "missing",
        "b.json": "foreign link",
        "c.json": "unreadable",
        "extra": "unknown",
    }
    assert [check.name for check in verify(found(store)) if check.is_damage][-1] == "c.json"


def test_a_link_that_a_pull_made_is_read_through(store: Store, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SAFETENSORS["config.json"])
    put_model(store, "tiny", SAFETENSORS, {"config.json": tmp_path / "blob"})
    assert set(statuses(store).values()) == {"ok"}
    (tmp_path / "blob").write_bytes(b"[]")
    assert statuses(store)["config.json"] == "wrong content"
    (tmp_path / "blob").unlink()
    assert statuses(store)["config.json"] in ("unreadable", "foreign link")


def test_models_of_older_pulls(store: Store) -> None:
    put_model(store, "tiny")
    (store.root / "models/tiny" / MANIFEST_NAME).unlink()
    assert statuses(store) == {"m.gguf": "ok"}
    (store.root / "models/tiny" / MANIFEST).unlink()
    assert stored_record(found(store)) is None
    assert statuses(store) == {"m.gguf": "unknown"}


def test_the_catalogue_is_what_is_left_to_compare_with(store: Store) -> None:
    path = put_model(store, "smollm2", {"SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF"})
    for name in (MANIFEST, MANIFEST_NAME):
        (path.parent / name).unlink()
    [check] = verify(found(store, "smollm2"))
    assert check.status == "wrong size"
    assert check.expected is not None
    assert check.expected.size == 98_362_432


def test_a_hostile_record_is_an_error_not_a_path(store: Store) -> None:
    put_model(store, "tiny")
    path = store.root / "models/tiny" / MANIFEST_NAME
    path.write_text(path.read_text().replace("m.gguf", "../../../secret"))
    with pytest.raises(ModelFileError, match="secret"):
        verify(found(store))


def test_files_behind_linked_directories_are_not_the_models(store: Store, tmp_path: Path) -> None:
    put_model(store, "tiny", {"sub/a.safetensors": b"a"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (store.root / "models/tiny/linked").symlink_to(tmp_path / "outside")
    assert list(stored_files(found(store))) == ["sub/a.safetensors"]
