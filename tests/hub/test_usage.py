"""Marks of models in use: seen by others, gone with the process, never in the way of a load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.hub.store import Store
from freehold.hub.usage import Use, users
from stored_models import put_model

HOLD = """
import sys, time
from pathlib import Path
from freehold.hub.store import Store
from freehold.hub.usage import Use
use = Use(Path({path!r}), Store(Path({root!r})))
print("held", flush=True)
time.sleep(60)
"""


def test_a_use_is_seen_until_it_is_released(store: Store) -> None:
    path = put_model(store, "tiny")
    put_model(store, "tiny.use")
    assert users("tiny", store) == []
    first, second = Use(path, store), Use(path, store)
    first.release()
    assert users("TINY", store) == [os.getpid()]
    assert users("tiny.use", store) == users("tin", store) == []
    second.release()
    second.release()
    assert users("tiny", store) == []
    assert not list((store.root / "locks").glob("*.use-*"))


def test_a_use_ends_with_its_object(store: Store) -> None:
    use = Use(put_model(store, "tiny"), store)
    del use
    assert users("tiny", store) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_another_process_is_named_and_a_killed_one_forgotten(store: Store) -> None:
    path = put_model(store, "tiny")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = HOLD.format(path=str(path), root=str(store.root))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        assert users("tiny", store) == [process.pid]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list((store.root / "locks").glob("tiny.use-*"))) == 1
    assert users("tiny", store) == []
    assert not list((store.root / "locks").glob("tiny.use-*"))


def test_models_elsewhere_and_stores_that_cannot_be_written_are_used_without_a_word(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    Use(tmp_path / "model", store)
    assert not store.root.exists()
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    Use(store.root / "models" / "tiny" / "m.gguf", store).release()
    assert users("tiny", store) == []
