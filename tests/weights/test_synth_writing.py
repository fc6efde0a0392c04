"""Writing a checkpoint with random weights: where, how much, and what is left when it does not end well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from freehold.errors import RequestError, ResourceError
from freehold.weights.synth import SHAPES, write_checkpoint
from freehold.weights.synth.containers import PlannedFile
from tiny_shapes import tiny


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "new.incomplete").mkdir()
    for name, reason in (("full", "not an empty directory"), ("file", "not an empty directory"), ("new", "incomplete")):
        with pytest.raises(RequestError, match=reason):
            write_checkpoint(tiny("smollm2"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "new.incomplete"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_checkpoint(tiny("smollm2"), tmp_path / "link")
    assert (tmp_path / "empty" / "config.json").exists()
    write_checkpoint(tiny("smollm2"), tmp_path / "not" / "yet" / "there")
    assert (tmp_path / "not" / "yet" / "there" / "model.safetensors").exists()


def test_too_little_space_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=13_761_264_768))
    with pytest.raises(ResourceError, match=r"24 layers takes 13,761,\d{3},\d{3} bytes.*only 13,761,264,768.*fewer"):
        write_checkpoint(SHAPES["gpt-oss-20b"], tmp_path / "new" / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wish", [{"layers": 0}, {"layers": 25}, {"seed": -1}, {"seed": 1 << 63}])
def test_impossible_wishes_are_refused(tmp_path: Path, wish: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=r"1 to 24|from 0 to"):
        write_checkpoint(SHAPES["gpt-oss-20b"], tmp_path / "a", **wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(ResourceError if isinstance(error, OSError) else KeyboardInterrupt):
        write_checkpoint(tiny("smollm2"), tmp_path / "a", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_nothing_is_at_the_directory(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tiny_shapes import tiny
from freehold.weights.synth import write_checkpoint
stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > total // 2 else None
write_checkpoint(tiny("smollm2"), Path({str(tmp_path / "a")!r}), progress=stop)
"""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["a.incomplete"]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = write_checkpoint(
        tiny("smollm2"), tmp_path / "a", container="gguf", progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (path.stat().st_size, path.stat().st_size)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_planned_files_know_their_size() -> None:
    file = PlannedFile("x", (b"abc", b"de"))
    assert (file.n_bytes, b"".join(file.pieces())) == (5, b"abcde")
