"""A GGUF model in parts on its way: pulled, resolved, packed, exported; and it computes what the whole file does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from freehold import load, packed_cache
from freehold.core import Float32Array
from freehold.errors import NotFoundError
from freehold.hub import Store, resolve
from freehold.hub.packed import fingerprint
from freehold.hub.portable import export_model, import_model
from freehold.hub.selection import shard_paths
from freehold.hub.sources import pull
from freehold.hub.verify import verify
from freehold.terminal.library import Library, LoadOptions, read_models
from freehold.weights.gguf_parts import part_paths
from freehold.weights.synth import write_checkpoint
from gguf_split import part_name, save_split, split_bytes
from loopback_hub import LoopbackHub, sha256
from tiny_shapes import tiny

IDS = [7, 40, 80, 120, 160, 200]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with random weights and a tokenizer."""
    return write_checkpoint(tiny("smollm2"), tmp_path_factory.mktemp("synth") / "a", container="gguf")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return save_split(whole, tmp_path / "big", "big-Q8_0", 3)


@pytest.fixture(autouse=True)
def _packed_weights_of_any_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("FREEHOLD_HOME", str(store.root))


def run(model: str | Path) -> tuple[Float32Array, str]:
    """Logits [n, vocab], and what became of the packed weights."""
    with load(model) as local:
        logits = local.logits(IDS)
    return logits, local.load_remark


@pytest.mark.parametrize("empty_first", [False, True], ids=["split", "no-tensor-first-split"])
def test_a_pulled_model_in_parts_is_that_of_one_file(
    hub: LoopbackHub, store: Store, whole: Path, empty_first: bool
) -> None:
    contents = split_bytes(whole, 3, empty_first=empty_first)
    files = {f"Q8_0/{part_name('big-Q8_0', no, 3)}": data for no, data in enumerate(contents)}
    hub.repositories["org/big-GGUF"] = {"README.md": b"# big", **files}
    path = pull("org/big-GGUF:Q8_0", store)
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    model = store.find("org--big-gguf--q8_0")
    assert model is not None
    assert (model.problem, model.format) == (None, "gguf")
    assert [(check.name, check.status) for check in verify(model)] == [
        (part_name("big-Q8_0", n, 3), "ok") for n in range(3)
    ]
    expected, _ = run(whole)
    for remark in ("kept for the next time", "weights packed before"):
        logits, said = run("org/big-GGUF:Q8_0")
        np.testing.assert_array_equal(logits, expected)
        assert said.endswith(remark)
    (path.parent / part_name("big-Q8_0", 1, 3)).unlink()
    damaged = store.find(model.name)
    assert damaged is not None
    assert damaged.problem is not None
    assert "00002-of-00003.gguf cannot be read" in damaged.problem


def test_the_url_of_one_part_fetches_all(hub: LoopbackHub, store: Store, whole: Path) -> None:
    contents = split_bytes(whole, 3)
    hub.files = {f"/x/{part_name('big', no, 3)}": data for no, data in enumerate(contents)}
    path = pull(f"{hub.url}/x/{part_name('big', 2, 3)}", store)
    assert path.name == part_name("big", 0, 3)
    assert path.parent.name.startswith("big-")
    assert path.parent.name.count("of-0") == 0
    np.testing.assert_array_equal(run(path)[0], run(whole)[0])


@pytest.mark.parametrize("copy", [False, True])
def test_one_part_of_this_machine_pulls_all(store: Store, parts: list[Path], copy: bool) -> None:
    path = pull(str(parts[1]), store, copy=copy)
    assert pull(str(parts[2]), store) == path
    assert path == store.path("big-q8_0")
    assert sorted(found.name for found in path.parent.glob("*.gguf")) == [part.name for part in parts]


def test_any_part_is_the_model(store: Store, parts: list[Path], whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in parts:
        for word in (part, str(part)):
            found = resolve(word, store)
            assert (found.kind, found.name, found.path) == ("path", "big-Q8_0", parts[0])
    monkeypatch.chdir(parts[0].parent)
    assert resolve(parts[2].name, store).path == parts[0]
    assert run(parts[2])[1].endswith("kept for the next time")
    assert run(parts[0])[1] == "weights packed before"
    names, paths = read_models([str(parts[1])], store, lambda name: pytest.fail(name))
    assert (names, paths) == (["big-Q8_0"], {"big-Q8_0": parts[0]})
    [source] = Library(paths, store, LoadOptions()).sources()
    assert (source.format, source.n_bytes) == ("gguf", sum(part.stat().st_size for part in parts))
    parts[0].unlink()
    assert resolve(parts[1], store).path == parts[1]
    with pytest.raises(
        NotFoundError, match=r"00002-of-00003\.gguf: 1 of the 3 parts .* missing .*'big-Q8_0-00001-of-00003"
    ):
        load(parts[1])


def test_every_part_is_in_the_fingerprint(store: Store, parts: list[Path]) -> None:
    seen = {fingerprint(parts[0], store), fingerprint(parts[0].parent, store)}
    for part in parts:
        before = len(seen)
        os.utime(part, ns=(1, 1))
        seen |= {fingerprint(parts[0], store), fingerprint(parts[0].parent, store)}
        assert len(seen) == before + 2, part
    parts[1].unlink()
    with pytest.raises(OSError, match="00002-of-00003"):
        fingerprint(parts[0], store)


def test_another_part_packs_anew(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    before, _ = run(parts[0])
    other = write_checkpoint(tiny("smollm2"), tmp_path / "other", container="gguf", seed=1)
    shutil.copy(save_split(other, tmp_path / "others", "big-Q8_0", 3)[1], parts[1])
    after, remark = run(parts[0])
    assert "packed before" not in remark
    assert np.abs(after - before).max() > 0.01


def test_all_parts_go_to_another_machine(store: Store, parts: list[Path], tmp_path: Path, whole: Path) -> None:
    record = export_model(resolve(parts[2], store), store, tmp_path / "big.tar")
    assert [(file.name, file.sha256) for file in record.files] == [(p.name, sha256(p.read_bytes())) for p in parts]
    other = Store(tmp_path / "other")
    path = import_model(tmp_path / "big.tar", other)
    assert path == other.path("big-q8_0") == other.root / "models" / "big-q8_0" / parts[0].name
    np.testing.assert_array_equal(run(path)[0], run(whole)[0])
    parts[0].unlink()
    with pytest.raises(NotFoundError, match=r"lacks 1 parts of big-Q8_0-00003-of-00003.gguf: big-Q8_0-00001-of-00003"):
        export_model(resolve(parts[2], store), store, tmp_path / "again.tar")


@pytest.mark.parametrize("name", ["m.gguf", "m-00002-of-00003.gguf", "m-2-of-3.gguf", "m-00004-of-00003.gguf"])
def test_the_store_and_the_reader_see_the_same_parts(name: str) -> None:
    assert shard_paths(Path(name)) == part_paths(Path(name))
