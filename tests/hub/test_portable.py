"""Export and import around the store: whole or not there, and no name takes other bytes than it should."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import FreeholdError, ModelFileError, NotFoundError, RequestError, ResourceError, StoreError
from freehold.hub import Resolved, Store, resolve
from freehold.hub.portable import export_model, import_model
from freehold.hub.verify import verify
from stored_models import GGUF, SAFETENSORS, archive_of, put_model, record_of


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """The store of the machine without a network."""
    return Store(tmp_path / "other")


def stored(store: Store, name: str) -> Resolved:
    model = store.find(name)
    assert model is not None
    return Resolved("stored", name, model.path)


def contents(store: Store, name: str) -> dict[str, bytes]:
    top = store.root / "models" / name
    own = {"manifest.json", "freehold.json"}
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file() and p.name not in own}


@pytest.mark.parametrize("files", [GGUF, SAFETENSORS, {"a-00001-of-00002.gguf": b"1", "a-00002-of-00002.gguf": b"2"}])
def test_a_stored_model_goes_to_another_machine(
    store: Store, other: Store, tmp_path: Path, files: dict[str, bytes]
) -> None:
    put_model(store, "tiny", files)
    before = store.find("tiny")
    record = export_model(stored(store, "tiny"), store, tmp_path / "tiny.tar")
    assert [file.name for file in record.files] == list(files)
    path = import_model(tmp_path / "tiny.tar", other)
    after = other.find("tiny")
    assert before is not None
    assert after is not None
    assert after.path == path
    assert path.name == ("tiny" if files is SAFETENSORS else sorted(files)[0])
    assert contents(other, "tiny") == files
    assert after.record == before.record
    assert after.format == before.format
    assert {check.status for check in verify(after)} == {"ok"}
    assert os.listdir(other.root / "staging") == []


def test_progress_tells_what_is_done(store: Store, other: Store, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, data in SAFETENSORS.items():
        (tmp_path / "model" / name).write_bytes(data)
    seen: list[tuple[str, int, int]] = []
    resolved = Resolved("path", "tiny", tmp_path / "model")
    export_model(resolved, store, tmp_path / "tiny.tar", progress=lambda *facts: seen.append(facts))
    total = sum(map(len, SAFETENSORS.values()))
    assert {what for what, _, _ in seen} == {"hashing tiny", "exporting tiny"}
    assert seen[-1] == ("exporting tiny", total, total)
    read: list[tuple[int, int]] = []
    import_model(tmp_path / "tiny.tar", other, progress=lambda *done: read.append(done))
    assert read[-1] == (total, total)


def test_a_linked_model_goes_as_bytes(store: Store, other: Store, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SAFETENSORS["model.safetensors"])
    put_model(store, "tiny", SAFETENSORS, {"model.safetensors": tmp_path / "blob"})
    export_model(stored(store, "tiny"), store, tmp_path / "tiny.tar")
    import_model(tmp_path / "tiny.tar", other)
    assert contents(other, "tiny") == SAFETENSORS
    assert not any(path.is_symlink() for path in other.root.rglob("*"))


def test_a_directory_goes_without_what_no_model_needs(store: Store, other: Store, tmp_path: Path) -> None:
    model = tmp_path / "My Model"
    (model / "original").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"weights")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    for name in ("config.json", "LICENSE", "README.md", "pytorch_model.bin", ".hidden.json", "original/a.safetensors"):
        (model / name).write_bytes(b"{}")
    with pytest.raises(RequestError, match="no model name"):
        export_model(resolve(model, store), store, tmp_path / "x.tar")
    record = export_model(resolve(model, store), store, tmp_path / "x.tar", name="mine")
    assert [file.name for file in record.files] == ["LICENSE", "README.md", "config.json", "model.safetensors"]
    assert str(tmp_path) not in record.to_json().decode()
    import_model(tmp_path / "x.tar", other)
    assert contents(other, "mine")["model.safetensors"] == b"weights"


def test_what_cannot_be_exported(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="freehold pull gpt-oss-20b"):
        export_model(Resolved("pullable", "gpt-oss-20b"), store, tmp_path / "x.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no model"):
        export_model(resolve(tmp_path / "empty", store), store, tmp_path / "x.tar")
    (tmp_path / "empty" / "odd:name.gguf").touch()
    with pytest.raises(RequestError, match=r"odd:name\.gguf"):
        export_model(resolve(tmp_path / "empty", store), store, tmp_path / "x.tar")
    put_model(store, "tiny", SAFETENSORS)
    resolved = stored(store, "tiny")
    (store.root / "models/tiny/config.json").unlink()
    with pytest.raises(StoreError, match=r"lacks config\.json"):
        export_model(resolved, store, tmp_path / "x.tar")
    assert not list(tmp_path.glob("x.tar*"))


def test_disk_space_is_checked_at_both_ends(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(store, "tiny")
    export_model(stored(store, "tiny"), store, tmp_path / "tiny.tar")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"0\.00 GB are free"):
        export_model(stored(store, "tiny"), store, tmp_path / "new.tar")
    with pytest.raises(ResourceError, match="importing tiny needs"):
        import_model(tmp_path / "tiny.tar", other)
    assert other.models() == []


def test_names_at_import(store: Store, other: Store, tmp_path: Path) -> None:
    put_model(store, "tiny")
    export_model(stored(store, "tiny"), store, tmp_path / "tiny.tar")
    notes: list[str] = []
    first = import_model(tmp_path / "tiny.tar", other, note=notes.append)
    assert import_model(tmp_path / "tiny.tar", other, note=notes.append) == first
    assert notes == ["tiny is in the store already, the same files"]
    assert import_model(tmp_path / "tiny.tar", other, name="Second").parent.name == "second"
    second = other.find("second")
    assert second is not None
    assert second.record is not None
    assert second.record.name == "second"
    put_model(store, "third", {"m.gguf": b"other"})
    export_model(stored(store, "third"), store, tmp_path / "other.tar", name="tiny")
    with pytest.raises(RequestError, match=r"another model is called tiny.*freehold rm tiny.*--as"):
        import_model(tmp_path / "other.tar", other)
    with pytest.raises(RequestError, match="no model name"):
        import_model(tmp_path / "tiny.tar", other, name="../up")
    (other.root / "models/tiny/m.gguf").write_bytes(b"damaged")
    import_model(tmp_path / "tiny.tar", other)
    assert contents(other, "tiny") == GGUF


@pytest.mark.parametrize(("name", "words"), [("smollm2", "catalogue pins"), ("gpt-oss", "another name of gpt-oss-20b")])
def test_a_name_of_the_catalogue_means_its_bytes(other: Store, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "x.tar").write_bytes(archive_of(record_of(name, GGUF), GGUF))
    with pytest.raises(RequestError, match=rf"{words}.*--as NAME"):
        import_model(tmp_path / "x.tar", other)
    assert import_model(tmp_path / "x.tar", other, name="mine").read_bytes() == GGUF["m.gguf"]


def test_what_cannot_be_imported_leaves_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    good = archive_of(record_of("tiny", SAFETENSORS), SAFETENSORS)
    for data in (b"", good[:700], good[:3000], good[:-2000], good.replace(b"weights", b"weighty", 1)):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ModelFileError, match=r"x\.tar"):
            import_model(tmp_path / "x.tar", store)
    (tmp_path / "x.tar").write_bytes(archive_of(record_of("tiny", {"README.md": b""}), {"README.md": b""}))
    with pytest.raises(ModelFileError, match="holds no weights"):
        import_model(tmp_path / "x.tar", store)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFoundError, match="freehold export"):
            import_model(path, store)
    assert store.models() == []
    assert not (store.root / "staging").exists() or os.listdir(store.root / "staging") == []


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(archive_of(record_of("tiny", GGUF), GGUF))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="FREEHOLD_HOME"):
        import_model(tmp_path / "x.tar", Store(tmp_path / "file"))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device; nothing was stored"):
        import_model(tmp_path / "x.tar", Store(tmp_path / "store"))
    with pytest.raises(StoreError, match="No space left on device; nothing was left"):
        export_model(resolve(tmp_path / "x.tar", Store(tmp_path)), Store(tmp_path), tmp_path / "y.tar", name="x")
    monkeypatch.undo()
    assert Store(tmp_path / "store").models() == []
    assert not list(tmp_path.glob("y.tar*"))


KILLED = """
import os, sys, time
from pathlib import Path
from freehold.hub import Store, resolve
from freehold.hub.portable import export_model, import_model
def halt(*args): print("now", flush=True); time.sleep(60)
{stop}
store = Store(Path({root!r}))
{action}
"""


@pytest.fixture
def killed() -> Any:
    def run(action: str, stop: str, store: Store) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        code = KILLED.format(stop=stop, root=str(store.root), action=action)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"now\n"
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    return run


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    ("stop", "n_models"),
    [
        ("os.fsync = halt", 0),
        ("os.rename = halt", 0),
        ("real = os.rename\nos.rename = lambda *a: (real(*a), halt())", 1),
    ],
    ids=["unpacking", "before the rename", "after the rename"],
)
def test_an_import_killed_at_any_moment(killed: Any, other: Store, tmp_path: Path, stop: str, n_models: int) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(archive_of(record_of("tiny", SAFETENSORS), SAFETENSORS))
    killed(f"import_model(Path({str(archive)!r}), store)", stop, other)
    assert [model.problem for model in other.models()] == [None] * n_models
    import_model(archive, other)
    assert contents(other, "tiny") == SAFETENSORS
    assert n_models or os.listdir(other.root / "staging") == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_an_export_killed_leaves_no_archive(killed: Any, store: Store, tmp_path: Path) -> None:
    put_model(store, "tiny", SAFETENSORS)
    target = tmp_path / "x.tar"
    killed(f"export_model(resolve('tiny', store), store, Path({str(target)!r}))", "os.rename = halt", store)
    assert not target.exists()
    with pytest.raises(FreeholdError, match="one was killed; delete it"):
        export_model(stored(store, "tiny"), store, target)
    (tmp_path / "x.tar.incomplete").unlink()
    export_model(stored(store, "tiny"), store, target)
