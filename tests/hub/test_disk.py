"""What the store takes, and what may go: nothing that is in use, nothing outside."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from freehold.errors import StoreError
from freehold.hub.disk import account, disposables, dispose
from freehold.hub.packed import packed_place
from freehold.hub.store import MANIFEST, Store
from freehold.hub.usage import Use
from stored_models import GGUF, put_model


def leave_partial(store: Store, name: str, n_bytes: int) -> None:
    """What a pull leaves that was interrupted."""
    with suppress(KeyboardInterrupt), store.lock(name), store.partial(name) as directory:
        (directory / "part").write_bytes(bytes(n_bytes))
        raise KeyboardInterrupt


def pack_elsewhere(store: Store, model: Path, n_bytes: int) -> Path:
    place = packed_place(model, store)
    with place.writing():
        place.file.write_bytes(bytes(n_bytes))
    return place.file.parent


def tree(path: Path) -> set[str]:
    return {found.relative_to(path).as_posix() for found in path.rglob("*")}


def test_an_empty_store_takes_nothing(store: Store) -> None:
    found = account(store)
    assert (found.models, found.total, found.other, found.downloads) == ((), 0, 0, {})
    assert found.free
    assert disposables(store, 0) == []
    assert not store.root.exists()


def test_every_byte_has_its_place(store: Store, tmp_path: Path) -> None:
    put_model(store, "tiny")
    (store.root / "models/tiny/weights.packed").write_bytes(bytes(70))
    leave_partial(store, "half", 30)
    (store.root / "staging/dead.x").mkdir()
    (store.root / "staging/dead.x/part").write_bytes(bytes(20))
    (tmp_path / "model").mkdir()
    pack_elsewhere(store, tmp_path / "model", 50)
    pack_elsewhere(store, tmp_path / "gone", 60)
    (store.root / "chats").write_bytes(bytes(7))
    (store.root / "outside").symlink_to("/usr")
    found = account(store)
    assert found.models[0].n_bytes > len(GGUF["m.gguf"]) + 70
    assert found.downloads == {"half": 30}
    assert found.debris == 20
    assert sorted((one.n_bytes > 50, one.exists) for one in found.packed) == [(True, False), (True, True)]
    assert found.other == 7
    parts = found.models[0].n_bytes + 30 + 20 + sum(one.n_bytes for one in found.packed) + found.other
    assert found.total == parts


def test_what_may_go_goes_and_nothing_else(store: Store, tmp_path: Path) -> None:
    put_model(store, "tiny")
    leave_partial(store, "half", 30)
    leave_partial(store, "busy", 30)
    for name in ("dead.x", "busy.x", "Odd Name"):
        (store.root / "staging" / name).mkdir()
    (tmp_path / "model").mkdir()
    kept, gone = pack_elsewhere(store, tmp_path / "model", 50), pack_elsewhere(store, tmp_path / "gone", 60)
    with store.lock("busy"):
        before = tree(store.root)
        found = disposables(store)
        assert tree(store.root) == before
        assert sorted((thing.kind, thing.name) for thing in found) == [
            ("debris", "dead"),
            ("download", "half"),
            ("packed weights", str(tmp_path / "gone")),
        ]
        for thing in found:
            dispose(thing, store)
    assert kept.exists()
    assert not gone.exists()
    assert sorted(os.listdir(store.root / "staging")) == ["Odd Name", "busy.x"]
    assert store.partials() == {"busy": 30}
    assert store.path("tiny").exists()
    for thing in found:
        dispose(thing, store)  # gone already


def test_models_that_were_not_used_for_long(store: Store) -> None:
    paths = {name: put_model(store, name) for name in ("old", "new", "loaded")}
    for name in ("old", "loaded"):
        os.utime(store.root / "models" / name / MANIFEST, (time.time() - 10 * 86_400,) * 2)
    use = Use(paths["loaded"], store)
    assert [thing.name for thing in disposables(store, 9)] == ["old"]
    assert disposables(store, 9)[0].reason == "not used for 10 days"
    assert disposables(store, 11) == []
    use.release()
    for thing in disposables(store, 9):
        dispose(thing, store)
    assert [model.name for model in store.models()] == ["new"]


def test_links_go_and_what_they_lead_to_stays(store: Store, tmp_path: Path) -> None:
    put_model(store, "tiny")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keep").touch()
    (store.root / "staging/dead.x").symlink_to(tmp_path / "outside")
    [thing] = disposables(store)
    assert thing.n_bytes == 0 or thing.n_bytes == len(str(tmp_path / "outside"))
    dispose(thing, store)
    assert os.listdir(store.root / "staging") == []
    assert (tmp_path / "outside/keep").exists()


def test_what_resists_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(store, "tiny")
    (store.root / "staging/dead.x").mkdir()
    [thing] = disposables(store)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.raises(StoreError, match=r"cannot delete .*dead\.x"):
        dispose(thing, store)
