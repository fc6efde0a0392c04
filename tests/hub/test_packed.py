"""Where packed weights are kept, and what counts as the same source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.errors import StoreError
from freehold.hub.packed import PACKED_NAME, elsewhere, fingerprint, packed_place, packed_size, sweep
from freehold.hub.store import Manifest, Store
from tiny_wheel import sha256


def put(store: Store, name: str, content: bytes = b"weights") -> Path:
    with store.lock(name), store.staging(name) as staging:
        staged = staging / "model"
        staged.mkdir()
        (staged / "m.gguf").write_bytes(content)
        facts = (name, "m.gguf", "gguf", len(content), sha256(content), "MIT", "test", "2026-01-01T00:00:00Z")
        return store.commit(staged, Manifest(*facts))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model outside of the store."""
    path = tmp_path / "model"
    (path / "original").mkdir(parents=True)
    for name in ("config.json", "a.safetensors", "original/b.safetensors", "tokenizer.json"):
        (path / name).write_bytes(b"x")
    return path


def test_packed_weights_of_a_stored_model_go_with_it(store: Store) -> None:
    model = put(store, "a")
    place = packed_place(model, store)
    assert place.file == model.parent / PACKED_NAME
    assert packed_size(model, store) is None
    with place.writing() as ours:
        assert ours
        place.file.write_bytes(b"packed")
    assert packed_size(model, store) == 6
    assert packed_size(model.parent, store) == 6
    [stored] = store.models()
    assert stored.problem is None
    assert stored.n_bytes >= len(b"weights") + 6
    store.remove("a")
    assert not place.file.exists()
    assert elsewhere(store) == {}


def test_a_model_elsewhere_has_a_place_in_the_store(store: Store, directory: Path) -> None:
    place = packed_place(directory, store)
    assert place.file.is_relative_to(store.root / "packed")
    assert not store.root.exists()
    assert place == packed_place(directory, store)
    assert place.file != packed_place(directory / "a.safetensors", store).file
    with place.writing():
        place.file.write_bytes(b"packed")
    assert elsewhere(store) == {place.file.parent: str(directory)}
    assert packed_size(directory, store) == 6


def test_one_writes_at_a_time(store: Store, directory: Path) -> None:
    place = packed_place(directory, store)
    with place.writing() as first, place.writing() as second:
        assert first
        assert not second
    with place.writing() as third:
        assert third


def test_what_belongs_to_models_that_are_gone_is_swept(store: Store, directory: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for model in (directory, gone):
        place = packed_place(model, store)
        with place.writing():
            place.file.write_bytes(b"packed")
    gone.rmdir()
    (store.root / "packed" / "of somebody").mkdir()
    sweep(store)
    assert list(elsewhere(store).values()) == [str(directory)]
    assert (store.root / "packed" / "of somebody").exists()


def test_links_in_the_store_are_refused(store: Store, directory: Path, tmp_path: Path) -> None:
    store.root.mkdir()
    (store.root / "packed").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="symbolic link"):
        packed_place(directory, store)
    assert packed_size(directory, store) is None


def test_the_fingerprint_changes_with_the_files(store: Store, directory: Path) -> None:
    seen = {fingerprint(directory, store)}

    def changed() -> bool:
        before = len(seen)
        seen.add(fingerprint(directory, store))
        return len(seen) > before

    assert not changed()
    os.utime(directory / "tokenizer.json", ns=(1, 1))
    assert not changed()
    for name in ("config.json", "a.safetensors", "original/b.safetensors"):
        os.utime(directory / name, ns=(1, 1))
        assert changed(), name
        (directory / name).write_bytes(b"xx")
        os.utime(directory / name, ns=(1, 1))
        assert changed(), name
    (directory / "a.safetensors").rename(directory / "c.safetensors")
    assert changed()


def test_the_fingerprint_of_a_stored_model_holds_its_digest(store: Store) -> None:
    model = put(store, "a", b"one")
    os.utime(model, ns=(1, 1))
    before = fingerprint(model, store)
    store.remove("a")
    assert put(store, "a", b"two") == model
    os.utime(model, ns=(1, 1))
    assert fingerprint(model, store) != before


def test_a_model_that_is_not_there_has_no_fingerprint(store: Store, tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "nothing", store) == fingerprint(tmp_path / "nothing", store)
    (tmp_path / "broken.gguf").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"nowhere|broken"):
        fingerprint(tmp_path, store)


@pytest.mark.parametrize(
    ("total", "free", "room"),
    [(1000, 200, True), (1000, 199, False), (10**12, 5 * 10**9 + 100, True), (10**12, 5 * 10**9 + 99, False)],
)
def test_some_of_the_disk_stays_free(
    total: int, free: int, room: bool, store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = type("", (), {"total": total, "free": free})
    monkeypatch.setattr("freehold.hub.packed.shutil.disk_usage", lambda path: disk)
    assert packed_place(directory, store).has_room(100) is room


def test_discarding_deletes_no_more_than_the_file(store: Store, directory: Path, tmp_path: Path) -> None:
    place = packed_place(directory, store)
    place.discard()
    with place.writing():
        place.file.write_bytes(b"packed")
    place.discard()
    assert not place.file.exists()
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    place.file.symlink_to(target)
    place.discard()
    assert not place.file.is_symlink()
    assert target.read_bytes() == b"mine"
    place.file.mkdir()
    place.discard()
    assert not place.file.exists()
    place.file.mkdir()
    (place.file / "mine").write_bytes(b"mine")
    place.discard()
    assert (place.file / "mine").exists()
