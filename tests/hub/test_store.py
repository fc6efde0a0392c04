"""The store: a model is whole or absent, whatever happens, and nothing outside is ever touched."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from freehold.errors import NotFoundError, RequestError, ResourceError, StoreError
from freehold.hub.store import MANIFEST, Manifest, Store, check_name
from tiny_wheel import sha256

CONTENT = b"weights"


def put(store: Store, name: str, content: bytes = CONTENT) -> Path:
    with store.lock(name), store.staging(name) as staging:
        staged = staging / "model"
        staged.mkdir()
        (staged / "m.gguf").write_bytes(content)
        manifest = Manifest(
            name, "m.gguf", "gguf", len(content), sha256(content), "MIT", "test", "2026-01-01T00:00:00Z"
        )
        return store.commit(staged, manifest)


def change_manifest(store: Store, model: str, **changes: object) -> None:
    path = store.root / "models" / model / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_new_store_is_empty_and_creates_nothing(store: Store) -> None:
    assert store.models() == []
    assert store.find("a") is None
    assert not store.root.exists()


def test_what_is_committed_is_found(store: Store) -> None:
    path = put(store, "a")
    assert path == store.path("A") == store.root / "models/a/m.gguf"
    [model] = store.models()
    assert (model.name, model.format, model.problem) == ("a", "gguf", None)
    assert model.n_bytes > len(CONTENT)
    assert os.listdir(store.root / "staging") == []


def test_commit_replaces_a_model_of_that_name(store: Store) -> None:
    put(store, "a")
    assert put(store, "a", b"newer").read_bytes() == b"newer"
    assert len(store.models()) == 1


def test_remove(store: Store) -> None:
    put(store, "a")
    put(store, "b")
    store.remove("A")
    assert [model.name for model in store.models()] == ["b"]
    assert os.listdir(store.root / "staging") == []


def test_a_missing_model_names_the_pull_command_and_the_nearest(store: Store) -> None:
    put(store, "smollm2")
    for action in (store.path, store.remove):
        with pytest.raises(NotFoundError, match=r"did you mean smollm2\?.*freehold pull smollm3"):
            action("smollm3")


def test_mark_used_changes_the_date_only(store: Store) -> None:
    put(store, "a")
    os.utime(store.root / "models/a" / MANIFEST, (1, 1))
    assert store.models()[0].last_used == 1
    store.mark_used("a")
    assert store.models()[0].last_used > 1


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "a\\b", "/a", "a\0b", "-rf", ".hidden", "a.", "é", "a b", "a" * 101, "C:"]
)
def test_names_that_could_leave_the_store_are_refused(store: Store, name: str) -> None:
    for action in (store.path, store.find, store.remove, store.mark_used):
        with pytest.raises(RequestError, match="no model name"):
            action(name)
    assert not store.root.exists()


@given(st.text(max_size=40))
@hypothesis_settings(max_examples=200, deadline=None)
def test_an_accepted_name_is_one_plain_path_part(name: str) -> None:
    try:
        checked = check_name(name)
    except RequestError:
        return
    assert Path("x", checked).parts == ("x", checked)
    assert checked.isascii()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 60000, b"9" * 70000])
def test_a_damaged_manifest_is_reported_and_can_be_removed(store: Store, content: bytes) -> None:
    put(store, "a")
    put(store, "b")
    (store.root / "models/a" / MANIFEST).write_bytes(content)
    damaged, whole = store.models()
    assert damaged.problem is not None
    assert "damaged" in damaged.problem
    assert whole.problem is None
    with pytest.raises(StoreError, match=r"damaged.*freehold pull a"):
        store.path("a")
    store.remove("a")
    assert [model.name for model in store.models()] == ["b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../../secret"},
        {"file": "/etc/passwd"},
        {"file": ""},
        {"file": "a\0b"},
        {"name": "b"},
        {"n_bytes": "7"},
        {"n_bytes": True},
        {"n_bytes": 8},
        {"sha256": None},
    ],
)
def test_a_manifest_cannot_lie(store: Store, changes: dict[str, object]) -> None:
    put(store, "a")
    change_manifest(store, "a", **changes)
    with pytest.raises(StoreError, match="freehold pull a"):
        store.path("a")


def test_a_truncated_or_missing_file_is_damage(store: Store) -> None:
    path = put(store, "a")
    path.write_bytes(b"w")
    with pytest.raises(StoreError, match="1 bytes instead of 7"):
        store.path("a")
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.path("a")


def test_links_inside_the_store_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_bytes(CONTENT)
    path = put(store, "a")
    path.unlink()
    path.symlink_to(outside / "keep")
    with pytest.raises(StoreError, match="not a regular file"):
        store.path("a")
    (store.root / "models/b").symlink_to(outside)
    with pytest.raises(StoreError, match="not a plain directory"):
        store.path("b")
    for name in ("a", "b"):
        store.remove(name)
    assert store.models() == []
    assert (outside / "keep").read_bytes() == CONTENT


@pytest.mark.parametrize("part", ["models", "staging", "locks"])
def test_a_linked_part_of_the_store_is_refused(store: Store, tmp_path: Path, part: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.root.mkdir()
    (store.root / part).symlink_to(outside)
    with pytest.raises(StoreError, match=r"symbolic link.*FREEHOLD_HOME"):
        put(store, "a")
    assert list(outside.iterdir()) == []


def test_a_linked_lock_file_is_refused(store: Store, tmp_path: Path) -> None:
    (store.root / "locks").mkdir(parents=True)
    (store.root / "locks/a.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="cannot lock"):
        put(store, "a")
    assert not (tmp_path / "victim").exists()


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    assert store.find("a") is None
    with pytest.raises(StoreError, match=r"cannot create.*FREEHOLD_HOME"):
        put(store, "a")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_serves_and_refuses(store: Store) -> None:
    put(store, "a")
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert store.path("a").read_bytes() == CONTENT
        store.mark_used("a")
        with pytest.raises(StoreError, match="cannot"):
            store.remove("a")
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_an_unwritable_disk_is_a_store_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    put(store, "a")
    monkeypatch.setattr("os.rename", refuse)
    with pytest.raises(StoreError, match="cannot remove a: Permission denied"):
        store.remove("a")
    monkeypatch.undo()
    assert store.path("a").read_bytes() == CONTENT


def test_disk_space_is_checked_with_numbers(store: Store) -> None:
    store.require_space(1, "pulling a")
    with pytest.raises(ResourceError, match=r"pulling a needs 100\d{10}\.\d MB of disk at .*, but [\d.]+ MB are free"):
        store.require_space(10**18, "pulling a")


def test_the_second_to_lock_waits_and_says_so(store: Store) -> None:
    notes: list[str] = []
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        def note(text: str) -> None:
            notes.append(text)
            waiting.set()

        with store.lock("a", note):
            order.append("second")

    with store.lock("a", notes.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        with store.lock("b"):
            order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert notes == ["another process is changing a in the store; waiting for it"]


def test_errors_of_the_work_under_a_lock_are_not_about_the_lock(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), store.lock("a"):
        raise FileNotFoundError("mine")
    with store.lock("a"):
        pass


def test_sweep_takes_only_what_nobody_holds(store: Store) -> None:
    put(store, "a")
    staging = store.root / "staging"
    for name in ("a.x1", "busy.x2", "dead.x3", "unknown thing"):
        (staging / name).mkdir()
        (staging / name / "part").touch()
    with store.lock("busy"), store.lock("a"):
        store.sweep("a")
    assert sorted(os.listdir(staging)) == ["busy.x2", "unknown thing"]
    assert store.path("a").read_bytes() == CONTENT
