"""The writing of packed weights: in the background, while the model rests, and whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import load, packed_cache
from freehold.runtime import LocalModel
from freehold.weights import packed_file
from packed_models import BEFORE, KEPT, copy_golden, leftovers, logits_of, run


@pytest.fixture
def gpt_oss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden checkpoint, and an empty store in which packed weights of the smallest models are kept."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FREEHOLD_PACKED", raising=False)
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    return copy_golden("gpt_oss", tmp_path)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing stops after the first piece, until the event is set or the writer is told to stop."""
    released = threading.Event()
    write = packed_file.write_packed

    def slow(path: Path, identity: Any, matrices: Any, go_on: Callable[[int], bool]) -> bool:
        def wait(done: int) -> bool:
            while go_on(done) and not released.is_set():
                time.sleep(0.005)
            return go_on(done)

        return write(path, identity, matrices, wait)

    monkeypatch.setattr(packed_file, "_WRITE_BYTES", 1 << 20)
    monkeypatch.setattr(packed_cache, "write_packed", slow)
    monkeypatch.setattr(packed_cache, "PATIENCE", 0.02)
    yield released
    released.set()


def wait_for_part(model: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and "weights.packed.part" not in leftovers(model):
        time.sleep(0.005)


def test_answers_come_while_the_file_is_written_and_closing_waits_for_it(
    gpt_oss: Path, slow_disk: threading.Event
) -> None:
    notes: list[str] = []
    with load(gpt_oss, note=notes.append) as local:
        plain = logits_of(gpt_oss, local)
        wait_for_part(gpt_oss)
        assert notes == []
        threading.Timer(0.2, slow_disk.set).start()
    assert leftovers(gpt_oss) == ["weights.packed"]
    [note] = notes
    assert note.startswith("keeping the packed weights")
    assert "Ctrl-C" in note
    found, remark = run(gpt_oss)
    assert remark == BEFORE
    assert np.array_equal(found, plain)


def test_the_file_is_written_while_the_model_rests(gpt_oss: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = [0.0]
    monkeypatch.setattr(packed_file, "_WRITE_BYTES", 1 << 20)
    monkeypatch.setattr(packed_cache, "REST", 0.02)
    monkeypatch.setattr(LocalModel, "idle_seconds", property(lambda self: rest[0]))
    with load(gpt_oss):
        wait_for_part(gpt_oss)
        time.sleep(0.1)
        assert leftovers(gpt_oss) == ["weights.packed.part"]
        rest[0] = 1.0
    assert leftovers(gpt_oss) == ["weights.packed"]


def test_a_model_says_how_long_it_has_rested(gpt_oss: Path) -> None:
    with load(gpt_oss, packed_cache=False) as local:
        assert local.idle_seconds == np.inf
        start = time.monotonic()
        logits_of(gpt_oss, local)
        assert 0 <= local.idle_seconds <= time.monotonic() - start


@pytest.mark.usefixtures("slow_disk")
def test_an_error_does_not_wait_and_leaves_nothing_behind(gpt_oss: Path) -> None:
    class OfTheCallerError(Exception):
        pass

    local = load(gpt_oss)
    wait_for_part(gpt_oss)
    with pytest.raises(OfTheCallerError), local:
        raise OfTheCallerError
    assert leftovers(gpt_oss) == []
    assert local.load_remark.endswith("not kept")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.usefixtures("slow_disk")
def test_ctrl_c_ends_the_wait(announced: bool, gpt_oss: Path) -> None:
    """Where the note said what it does, it does only that; otherwise the caller gets it as well."""
    local = load(gpt_oss, note=(lambda text: None) if announced else None)
    wait_for_part(gpt_oss)
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    if announced:
        local.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            local.close()
    assert leftovers(gpt_oss) == []
    local.close()


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_writer_leaves_nothing_that_counts(gpt_oss: Path) -> None:
    script = """
        import sys, time
        from freehold import load, packed_cache
        from freehold.weights import packed_file
        packed_cache.MIN_BYTES = 0
        packed_file._WRITE_BYTES = 1 << 20
        packed_cache.PackedCache._go_on = lambda self, done: print("writing", flush=True) or time.sleep(60) or True
        load(sys.argv[1]).close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(gpt_oss)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert run(gpt_oss)[1].endswith("another process is keeping them")
        process.kill()
    assert leftovers(gpt_oss) == ["weights.packed.part"]
    plain, remark = run(gpt_oss)
    assert remark.endswith(KEPT)
    assert leftovers(gpt_oss) == ["weights.packed"]
    found, remark = run(gpt_oss)
    assert remark == BEFORE
    assert np.array_equal(found, plain)


def test_whoever_never_closes_waits_for_nothing_and_leaves_nothing(gpt_oss: Path) -> None:
    script = """
        import sys, time
        from freehold import load, packed_cache
        from freehold.weights import packed_file
        packed_cache.MIN_BYTES = 0
        packed_file._WRITE_BYTES = 1 << 20
        go_on = packed_cache.PackedCache._go_on
        packed_cache.PackedCache._go_on = lambda self, done: time.sleep(0.2) or go_on(self, done)
        model = load(sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(gpt_oss)]
    subprocess.run(command, check=True, timeout=60)
    assert leftovers(gpt_oss) == []


def test_loads_at_once_agree_and_leave_one_good_file(gpt_oss: Path) -> None:
    plain, _ = run(gpt_oss, packed_cache=False)
    results: list[tuple[np.ndarray, str]] = []
    threads = [threading.Thread(target=lambda: results.append(run(gpt_oss))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(found, plain) for found, _ in results)
    assert leftovers(gpt_oss) == ["weights.packed"]
    assert run(gpt_oss)[1] == BEFORE
