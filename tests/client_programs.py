"""Programs from npm that tests run against the server: installed once into the cache, run in a home of their own.

What is installed is pinned in tests/clients/npm/NAME. Nothing of this user's settings reaches a program, nothing it
writes is kept, and it is told to talk to nobody but the server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

PINNED = Path(__file__).parent / "clients" / "npm"
INSTALL_SECONDS = 420
RUN_SECONDS = 120

_UNREACHABLE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ENOTCACHED|network")
_QUIET = {
    "CI": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANG": "C.UTF-8",
    "NO_COLOR": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "OTEL_SDK_DISABLED": "true",
    "TZ": "UTC",
}


def installed(name: str, *, only_if: str | None = None) -> Path:
    """The node_modules of a pinned set of packages. Skips the test where they cannot be had.

    only_if: an environment variable that must be set, since the packages are large.
    """
    if only_if is not None and not os.environ.get(only_if):
        pytest.skip(f"{name} is several hundred MB; {only_if}=1 installs and runs it")
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    lock = (PINNED / name / "package-lock.json").read_bytes()
    place = _cache() / "npm" / f"{name}-{sha256(lock).hexdigest()[:12]}"
    if not place.exists():
        _install(npm, PINNED / name, place)
    return place / "node_modules"


def quiet_environment(home: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment with nothing of the user's but PATH, and `settings`."""
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), **_QUIET, **(settings or {})}


def run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a program to its end; its standard output. Fails with all that it printed if it does not succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FREEHOLD_TEST_HOME") or cache / "freehold-tests")


def _install(npm: str, pinned: Path, place: Path) -> None:
    """Install beside `place`, then move, so that it is there whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="installing-") as made:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(pinned / file, made)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        done = subprocess.run(
            command, cwd=made, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
        if done.returncode != 0 and _UNREACHABLE.search(done.stderr):
            pytest.skip(f"npm reaches no registry: {done.stderr[-300:]}")
        assert done.returncode == 0, f"npm ci failed:\n{done.stderr[-3000:]}"
        target = Path(made) / "whole"
        target.mkdir()
        (Path(made) / "node_modules").rename(target / "node_modules")
        if not place.exists():  # another run may have been faster
            target.rename(place)
