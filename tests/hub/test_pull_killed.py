"""A pull killed at random moments: nothing half-valid, and the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from freehold.hub.sources import pull
from freehold.hub.store import Store
from loopback_hub import LoopbackHub

CODE = """
import sys
from pathlib import Path
from freehold.hub.sources import pull
from freehold.hub.store import Store
print("now", flush=True)
pull(sys.argv[1], Store(Path(sys.argv[2])))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_random_moments(hub: LoopbackHub, store: Store) -> None:
    rng = random.Random(7)
    files = {f"model-0000{i}-of-00004.safetensors": rng.randbytes(3_000_000) for i in range(1, 5)}
    hub.repositories["org/tiny"] = {"config.json": b"{}", **files}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for wait in (0.01, 0.04, 0.08):
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "ms:org/tiny", str(store.root)], stdout=subprocess.PIPE, env=env
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert all(model.problem is None for model in store.models())
    path = pull("ms:org/tiny", store)
    assert {name: (path / name).read_bytes() for name in files} == files
    assert store.partials() == {}


def test_two_pulls_of_one_model_fetch_once(hub: LoopbackHub, store: Store) -> None:
    hub.repositories["org/tiny"] = {"config.json": b"{}", "model.safetensors": bytes(5_000_000)}
    command = [sys.executable, "-c", CODE, "ms:org/tiny", str(store.root)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env) for _ in range(2)]
    assert [process.wait(30) for process in processes] == [0, 0]
    gets = [asked for asked in hub.requests if "FilePath=model.safetensors" in asked.path]
    assert len(gets) == 1
    assert store.path("org--tiny--ms").is_dir()


@pytest.mark.parametrize("moment", ["before the manifest", "between the renames"])
def test_killed_while_committing(hub: LoopbackHub, store: Store, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """As a kill would leave it: everything is there, and nothing is fetched again."""
    hub.repositories["org/tiny"] = {"config.json": b"{}", "model.safetensors": bytes(1000)}
    pull("ms:org/tiny", store)
    (store.root / "models/org--tiny--ms/config.json").write_bytes(b"damaged")
    name = "os.fsync" if moment == "before the manifest" else "os.rename"
    real = getattr(os, name.partition(".")[2])
    calls: list[object] = []

    def killed(*args: object) -> object:
        calls.append(args)
        is_commit = len(calls) > (2 if name == "os.fsync" else 1)
        if is_commit:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(name, killed)
    with pytest.raises(KeyboardInterrupt):
        pull("ms:org/tiny", store)
    monkeypatch.undo()
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
    hub.requests.clear()
    assert pull("ms:org/tiny", store).is_dir()
    assert not [asked for asked in hub.requests if "FilePath" in asked.path]
