"""Packed weights kept between loads: the same answers with them, and none but good ones are used.

Everything runs on the real kernels and the golden checkpoints, through `freehold.load`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import load, packed_cache
from freehold.errors import RequestError
from freehold.models import Residence
from freehold.weights import packed_file
from freehold.weights.checkpoint import Checkpoint
from golden_models import FAMILIES
from packed_models import BEFORE, KEPT, copy_golden, leftovers, packed_path, run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and packed weights of the smallest models kept in it."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FREEHOLD_PACKED", raising=False)
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    return tmp_path / "home"


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return copy_golden(request.param, tmp_path)


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    return copy_golden("gpt_oss", tmp_path)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, packing fails, and so does touching a matrix of the checkpoint."""

    def forbid() -> None:
        def fill(pool: Any, matrices: Any, *rest: Any) -> int:
            assert not matrices, "a matrix is packed"
            return -1

        def get(checkpoint: Checkpoint, name: str) -> Any:
            tensor = checkpoint.tensors.get(name)
            table = name == "model.embed_tokens.weight" and not checkpoint.config["tie_word_embeddings"]
            assert len(tensor.shape) == 1 or name.endswith("bias") or table, f"{name} is read"
            return tensor

        monkeypatch.setattr("freehold.kernels.native._kernels.fill", fill)
        monkeypatch.setattr("freehold.loading.residence", lambda checkpoint, *rest: Residence(checkpoint.n_bytes))
        monkeypatch.setattr(Checkpoint, "get", get)

    return forbid


def test_the_second_load_packs_nothing_and_answers_the_same(model: Path, no_packing: Callable[[], None]) -> None:
    plain, remark = run(model, packed_cache=False)
    assert remark == "weights packed"
    first, remark = run(model)
    assert remark.endswith(KEPT)
    no_packing()
    second, remark = run(model)
    assert remark == BEFORE
    assert np.array_equal(plain, first)
    assert np.array_equal(first, second)


def test_the_second_load_counts_what_the_first_did(model: Path) -> None:
    seen = []
    for _ in range(2):
        progress: list[tuple[int, int]] = []

        def note(what: str, done: int, total: int, progress: list[tuple[int, int]] = progress) -> None:
            progress.append((done, total))

        with load(model, progress=note) as local:
            seen.append((local.plan.weight_bytes, local.plan.n_blocks, local.step_bytes))
        assert progress == sorted(progress)
        assert all(done <= total for done, total in progress)
    assert seen[0] == seen[1]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "magic": lambda path: flip(path, 0),
    "layout version": lambda path: flip(path, 8),
    "checksum": lambda path: flip(path, 12),
    "table": lambda path: flip(path, 200),
    "last page": lambda path: flip(path, -100),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "table only": lambda path: os.truncate(path, 4096),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 64),
    "garbage": lambda path: path.write_bytes(os.urandom(10000)),
    "link": replace_by_link,
    "directory": replace_by_directory,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_rebuilt(damage: str, gpt_oss: Path, no_packing: Callable[[], None]) -> None:
    plain, _ = run(gpt_oss)
    path = packed_path(gpt_oss)
    whole = path.read_bytes()
    DAMAGE[damage](path)
    found, remark = run(gpt_oss)
    assert np.array_equal(found, plain)
    assert "packed: " in remark
    assert remark.endswith(KEPT)
    assert not path.is_symlink()
    assert path.read_bytes() == whole
    no_packing()
    assert np.array_equal(run(gpt_oss)[0], plain)


def test_a_directory_with_something_in_it_is_left_alone(gpt_oss: Path) -> None:
    path = packed_path(gpt_oss)
    path.mkdir(parents=True)
    (path / "mine").write_bytes(b"mine")
    _, remark = run(gpt_oss)
    assert remark.endswith("is in the way")
    assert (path / "mine").read_bytes() == b"mine"


def test_changed_sources_are_packed_anew(model: Path) -> None:
    plain, _ = run(model)
    os.utime(model / "model.safetensors", ns=(1, 1))
    found, remark = run(model)
    assert "other files" in remark
    assert remark.endswith(KEPT)
    assert np.array_equal(found, plain)
    assert run(model)[1] == BEFORE


def test_another_rounding_is_packed_anew(gpt_oss: Path) -> None:
    rounded, _ = run(gpt_oss)
    exact, remark = run(gpt_oss, weights="native")
    assert "rounding" in remark
    assert not np.array_equal(rounded, exact)
    assert np.array_equal(run(gpt_oss, weights="native", packed_cache=False)[0], exact)
    found, remark = run(gpt_oss, weights="native")
    assert remark == BEFORE
    assert np.array_equal(found, exact)


def test_another_layout_is_packed_anew(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(gpt_oss)
    monkeypatch.setattr(packed_cache, "PACKED_LAYOUT", 1000)
    _, remark = run(gpt_oss)
    assert "layout" in remark
    assert run(gpt_oss)[1] == BEFORE


def test_a_file_that_lacks_a_matrix_serves_the_others_and_is_rebuilt(
    gpt_oss: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run(gpt_oss)
    find = packed_file.PackedFile.find

    def forgetful(self: Any, name: str, expert: int) -> Any:
        return None if (name, expert) == ("model.layers.0.mlp.experts.up_proj.weight", 3) else find(self, name, expert)

    with monkeypatch.context() as patch:
        patch.setattr(packed_file.PackedFile, "find", forgetful)
        found, remark = run(gpt_oss)
    assert remark.endswith(KEPT)
    assert np.array_equal(found, plain)
    assert run(gpt_oss)[1] == BEFORE


def test_matrices_of_the_wrong_size_are_packed_anew(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = run(gpt_oss)
    find = packed_file.PackedFile.find

    def short(self: Any, name: str, expert: int) -> Any:
        found = find(self, name, expert)
        return found and packed_file.PackedMatrix(
            name, expert, found.format, found.n_rows, found.n_cols, found.data[:-64]
        )

    monkeypatch.setattr(packed_file.PackedFile, "find", short)
    assert np.array_equal(run(gpt_oss)[0], plain)


@pytest.mark.parametrize("blocked", ["packed", "locks"])
def test_a_store_that_cannot_be_written_is_no_error(blocked: str, gpt_oss: Path, home: Path) -> None:
    plain, _ = run(gpt_oss, packed_cache=False)
    home.mkdir(exist_ok=True)
    (home / blocked).write_bytes(b"a file, where no folder can be made")
    found, remark = run(gpt_oss)
    assert "not kept: " in remark
    assert np.array_equal(found, plain)


def test_a_folder_without_write_permission_is_no_error(gpt_oss: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    run(gpt_oss)
    path = packed_path(gpt_oss)
    flip(path, 0)
    path.parent.chmod(0o555)
    try:
        _, remark = run(gpt_oss)
    finally:
        path.parent.chmod(0o755)
    assert "not kept: " in remark


def test_a_disk_without_room_is_no_error(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = type("", (), {"total": 10**12, "free": 10**9})
    monkeypatch.setattr("freehold.hub.packed.shutil.disk_usage", lambda path: disk)
    _, remark = run(gpt_oss)
    assert "too little of the disk free" in remark
    assert leftovers(gpt_oss) == []


def test_a_disk_that_fills_up_is_no_error(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, *rest: Any) -> bool:
        path.write_bytes(b"as far as it went")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed_cache, "write_packed", write)
    _, remark = run(gpt_oss)
    assert f"not kept: [Errno {errno.ENOSPC}]" in remark
    assert leftovers(gpt_oss) == []


def test_small_models_are_not_kept(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 1 << 30)
    assert run(gpt_oss)[1] == "weights packed"
    assert not packed_path(gpt_oss).exists()


def test_who_does_not_want_it_has_none(gpt_oss: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(gpt_oss, packed_cache=False)
    run(gpt_oss, precision="reference")
    monkeypatch.setenv("FREEHOLD_PACKED", "off")
    run(gpt_oss)
    assert not home.exists()
    monkeypatch.setenv("FREEHOLD_PACKED", "on")
    run(gpt_oss)
    monkeypatch.setenv("FREEHOLD_PACKED", "off")
    assert run(gpt_oss)[1] == "weights packed"
    monkeypatch.setenv("FREEHOLD_PACKED", "perhaps")
    with pytest.raises(RequestError, match="FREEHOLD_PACKED is 'perhaps'; expected on or off"):
        load(gpt_oss)
